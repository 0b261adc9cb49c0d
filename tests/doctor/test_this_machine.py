"""The doctor without a peer names what is wrong with this machine."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kvferry import simulator
from kvferry._command import doctor_host, doctor_outputs, doctor_peer
from kvferry._command.findings import Finding
from kvferry._probes import addresses, clocks, connecting, devices, limits, packets, ports, processors, samehost, tcp
from support.commands import serving
from support.inprocess import environment

LIMIT = 60.0


def doctor(*arguments: str, files: int | None = None, **settings: str) -> tuple[int, dict[str, str], Any]:
    """The exit status, the severity by subject of the worst findings, and the whole report."""

    def limit_files() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    done = subprocess.run(
        [sys.executable, "-m", "kvferry", "doctor", "--json", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        preexec_fn=limit_files,
    )
    report = json.loads(done.stdout)
    severities: dict[str, str] = {}
    for severity in ("ok", "info", "warning", "error"):
        severities.update({f["subject"]: severity for f in report["findings"] if f["severity"] == severity})
    return done.returncode, severities, report


def test_few_descriptors_are_named() -> None:
    status, severities, report = doctor(files=100)
    assert severities["descriptors"] == "warning" and status == 0, report


def test_the_connections_that_few_descriptors_allow_are_those_of_an_engine() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400));"
        "from mooncake.engine import TransferEngine; engine = TransferEngine();"
        "engine.initialize('127.0.0.1', 'P2PHANDSHAKE', 'tcp', ''); print(engine.stats()['sessions']['limit'])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    _, _, report = doctor(files=400)
    (found,) = (f["found"] for f in report["findings"] if f["subject"] == "descriptors")
    assert f"engines accept {int(done.stdout)} data connections at most" in found


def test_no_descriptors_left_is_an_error() -> None:
    status, severities, report = doctor(files=60)
    assert severities["descriptors"] == "error" and status == 1, report


def test_a_slow_device_is_named() -> None:
    _, severities, report = doctor(KVFERRY_ASCENDCL=simulator.library("npu"), KVFERRY_SIM_COST="d2h=0.2/15,h2d=0.2/15")
    assert severities["slow device"] == "warning", report
    found = next(f for f in report["findings"] if f["subject"] == "slow device")
    assert "npu:0" in found["found"] and found["advice"]


def test_ports_that_are_taken_are_an_error() -> None:
    with contextlib.closing(socket.create_server(("", 0))) as taken:
        port = taken.getsockname()[1]
        (found,) = doctor_host.of_ports(ports.ports(port, port))
    assert (found.severity, found.subject) == ("error", "ports")


def test_settings_without_effect_are_named() -> None:
    status, severities, report = doctor(MC_RETRY_CNT="lots", KVFERRY_LISTN="::")
    assert severities["settings"] == "warning" and status == 0
    texts = " ".join(f["found"] for f in report["findings"])
    assert "MC_RETRY_CNT" in texts and "KVFERRY_LISTEN" in texts


@pytest.mark.parametrize(
    "wrong",
    [
        {"KVFERRY_SECURITY": "required"},
        {"KVFERRY_SECURITY": "require", "KVFERRY_SECRET_FILE": ""},
        {"KVFERRY_SECRET_FILE": "/nonexistent"},
        {"KVFERRY_ALLOW": "10.0.0"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_with_which_no_engine_starts_are_an_error(wrong: Any) -> None:
    status, severities, report = doctor(**wrong)
    assert severities["engine"] == "error" and status == 1, report
    (found,) = (f for f in report["findings"] if f["subject"] == "engine")
    assert next(iter(wrong)) in found["found"] and found["advice"]


def test_a_secret_file_that_others_can_read_or_change_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    files = {"KVFERRY_SECRET_FILE": str(file), "KVFERRY_TLS_KEY": ""}
    assert not wrong(doctor_host.of_secrets(files))
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        (finding,) = wrong(doctor_host.of_secrets(files))
        assert finding.subject == "security" and finding.advice == f"chmod 600 {file}"
    file.chmod(0o711)
    assert not wrong(doctor_host.of_secrets({"KVFERRY_SECRET_FILE": str(tmp_path), "KVFERRY_TLS_KEY": "/dev/null"}))


def settings_of(**values: str) -> Any:
    names = ("MC_LOG_DIR", "KVFERRY_TRACE_FILE", "KVFERRY_SOCKET_DIR", "KVFERRY_METRICS_LISTEN")
    return {"settings": [{"name": name, "value": values.get(name, "")} for name in names], "unknown": []}


def test_places_to_which_an_engine_cannot_write_are_a_warning(tmp_path: Path) -> None:
    there, missing, file, shared = tmp_path / "there", tmp_path / "missing", tmp_path / "file", tmp_path / "shared"
    there.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o755)
    file.touch()
    for name, good, bad in (
        ("MC_LOG_DIR", ["", there], [missing, file]),
        ("KVFERRY_TRACE_FILE", ["", there / "trace.%p.json", "trace.json"], [missing / "trace.json"]),
        ("KVFERRY_SOCKET_DIR", ["off", there, missing], [missing / "folder", file, shared]),
        (
            "KVFERRY_METRICS_LISTEN",
            ["", ":9400", "127.0.0.1:9400-9407", f"unix:{there}/metrics"],
            ["9400", "127.0.0.1", "192.0.2.1:9400", "no name:9400", f"unix:{missing}/metrics"],
        ),
    ):
        others = {} if name == "KVFERRY_SOCKET_DIR" else {"KVFERRY_SOCKET_DIR": "off"}
        for place in good:
            assert not wrong(doctor_outputs.of_outputs(settings_of(**{**others, name: str(place)}))), place
        for place in bad:
            (finding,) = wrong(doctor_outputs.of_outputs(settings_of(**{**others, name: str(place)})))
            assert finding.found.startswith(f"{name} has no effect") and finding.advice, place


def test_that_kvferry_top_finds_no_engines_is_worth_knowing_where_nobody_has_named_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_outputs, "of_sockets", lambda setting: f"{setting} cannot be made")
    (finding,) = doctor_outputs.of_outputs(settings_of(KVFERRY_SOCKET_DIR="auto"))
    assert finding.severity == "info" and "KVFERRY_SOCKET_DIR" in finding.advice
    (finding,) = doctor_outputs.of_outputs(settings_of(KVFERRY_SOCKET_DIR="/run/none"))
    assert finding.severity == "warning"


def test_a_device_library_that_is_named_and_not_there_is_a_warning() -> None:
    status, severities, report = doctor(KVFERRY_CUDA="/nonexistent.so")
    assert severities["devices"] == "warning" and status == 0, report
    assert any("KVFERRY_CUDA names /nonexistent.so" in f["found"] for f in report["findings"])


def test_a_peer_whose_name_has_no_port_gets_advice_of_its_own() -> None:
    refused = [connecting.Connected("10.0.0.2", 12001, "refused", True, False, False, None, None, None)]
    (named,) = doctor_peer.of_handshake_port("10.0.0.2", 12001, True, refused)
    (unnamed,) = doctor_peer.of_handshake_port("10.0.0.2", 12001, False, refused)
    assert "MC_HANDSHAKE_PORT" in unnamed.found and "Name the port, too" in unnamed.advice
    assert "MC_HANDSHAKE_PORT" not in named.found and "Compare the port" in named.advice


def test_a_url_in_place_of_a_peer_is_named_and_not_shown() -> None:
    status, _, report = doctor("http://user:password@10.0.0.2:8000")
    assert status == 1 and "is a URL" in report["findings"][-1]["found"]
    assert "password" not in json.dumps(report)


def test_a_peer_that_allows_only_other_addresses_is_named() -> None:
    with serving("--size", "1M", KVFERRY_ALLOW="192.0.2.200") as (peer, _):
        status, severities, report = doctor(peer)
    assert status == 1 and set(severities) & {"handshake port", "handshake"}, report
    (found,) = (f for f in report["findings"] if f["severity"] == "error")
    assert "KVFERRY_ALLOW" in found["advice"]


def test_packets_are_not_called_lost_where_the_peer_resets_the_connection() -> None:
    with contextlib.closing(socket.socket()) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the probe is not acknowledged whole
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def reset() -> None:
            accepted, _ = listening.accept()
            accepted.recv(1, socket.MSG_PEEK)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

        resetting = threading.Thread(target=reset)
        resetting.start()
        assert packets.largest("127.0.0.1", listening.getsockname()[1], 5) is None
        resetting.join()


GOOD: dict[str, Any] = {
    "same host": samehost.SameHost(True, "", None, 0),
    "limits": limits.Limits(10, 20000, 20000, None, None, None, None),
    "tcp": tcp.Tcp("cubic", ("cubic",), 64 << 20, 64 << 20, True, True, 0),
    "processors": processors.Processors((0, 1, 2, 3), 4, None, (0,)),
    "addresses": [addresses.Address("eth0", "10.0.0.1")],
    "copies": devices.Copies("npu:0", 20e9, 20e9, ""),
}
SETTINGS: Any = {
    "settings": [
        {"name": name, "value": value, "default": value, "source": "default", "problem": ""}
        for name, value in (
            ("KVFERRY_TCP_CONGESTION", ""),
            ("MC_TCP_ENABLE_CONNECTION_POOL", "1"),
            ("MC_TCP_LANES_PER_PEER", "4; and so on"),
        )
    ],
    "unknown": [],
}
TEN_GIGABITS = 10_000_000_000


def wrong(findings: Any) -> list[Finding]:
    return [finding for finding in findings if finding.severity in ("warning", "error")]


def test_yama_and_seccomp_are_told_apart() -> None:
    assert not wrong(doctor_host.of_same_host(GOOD["same host"]))
    denied = samehost.SameHost(False, "Operation not permitted", 1, 0)
    assert wrong(doctor_host.of_same_host(denied))[0].subject == "yama"
    filtered = samehost.SameHost(False, "Operation not permitted", 0, 2)
    (finding,) = wrong(doctor_host.of_same_host(filtered))
    assert finding.subject == "same host" and "seccomp" in finding.advice


@pytest.mark.parametrize(
    ("changed", "subject"),
    [
        ({"receive_buffer": 65536}, "window"),
        ({"send_buffer": 65536}, "window"),
        ({"window_scaling": False}, "window"),
        ({"selective_acks": False}, "loss"),
    ],
)
def test_settings_of_tcp_that_slow_it_down_are_named(changed: dict[str, Any], subject: str) -> None:
    assert not wrong(doctor_host.of_tcp(GOOD["tcp"], TEN_GIGABITS, SETTINGS))
    (finding,) = wrong(doctor_host.of_tcp(GOOD["tcp"]._replace(**changed), TEN_GIGABITS, SETTINGS))
    assert finding.subject == subject


def test_one_processor_or_a_small_quota_is_named() -> None:
    assert not wrong(doctor_host.of_processors(GOOD["processors"]))
    for changed in ({"allowed": (3,)}, {"quota": 0.5}):
        (finding,) = wrong(doctor_host.of_processors(GOOD["processors"]._replace(**changed)))
        assert finding.subject == "processors"


def test_a_machine_without_an_address_for_others_is_named() -> None:
    assert not wrong(doctor_host.of_addresses(GOOD["addresses"]))
    (finding,) = wrong(doctor_host.of_addresses([addresses.Address("lo", "127.0.0.1")]))
    assert (finding.severity, finding.subject) == ("error", "addresses")


def test_a_container_with_few_threads_left_is_named() -> None:
    assert not wrong(doctor_host.of_limits(GOOD["limits"]))
    (finding,) = wrong(doctor_host.of_limits(GOOD["limits"]._replace(pids=100, pids_in_use=90)))
    assert finding.subject == "threads"


def test_one_receive_queue_of_a_fast_interface_is_named() -> None:
    nic = addresses.Interface("eth0", True, 9000, 100_000_000_000, False, None, "mlx5_core", 1)
    (finding,) = wrong(doctor_host.of_interface(nic, GOOD["processors"]))
    assert finding.subject == "interrupts" and "ethtool -L eth0" in finding.advice
    assert not wrong(doctor_host.of_interface(nic._replace(queues=8), GOOD["processors"]))


def test_a_clock_matters_with_certificates_only() -> None:
    late = clocks.Clock(False, 16.0)
    assert wrong(doctor_host.of_clock(late, certificates=True)) and not wrong(doctor_host.of_clock(late, False))


def test_a_device_that_cannot_be_used_is_an_error() -> None:
    assert not wrong(doctor_host.of_copies(GOOD["copies"]))
    (finding,) = wrong(doctor_host.of_copies(GOOD["copies"]._replace(problem="it is lost")))
    assert finding.severity == "error"
