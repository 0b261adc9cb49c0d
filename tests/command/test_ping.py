"""kvferry ping."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from kvferry._command.engines import own_address, split
from kvferry._command.ping import Times
from kvferry._engine import Engine
from mooncake.engine import TransferEngine
from support import venvs
from support.commands import result, run, running, serving
from support.inprocess import Node, environment
from support.peers import Peers

QUICK = "-i", "0.01"


def test_a_peer_answers_by_both_ports_and_nothing_changes_there() -> None:
    node = Node(4096)
    node.put(b"x" * 4096)
    status, out, err = run("ping", node.name, "-c", "3", *QUICK, "-s", "4K")
    assert (status, err) == (0, "")
    assert out.startswith(f"{node.name} is a kvferry engine, its data port is 127.0.0.1:")
    assert len(re.findall(r"^\d: handshake [\d.]+ ms, read [\d.]+ ms$", out, re.M)) == 3
    for what in ("handshake", "read of 4096 bytes"):
        statistics = rf"^{what}: 3 asked, 3 answered, 0% without an answer, min/avg/max/mdev [\d.]+(/[\d.]+){{3}} ms$"
        assert re.search(statistics, out, re.M), out
    assert node.get(4096) == b"x" * 4096
    assert node.engine.get_notifies() == []


def test_a_peer_without_memory_is_probed_only() -> None:
    empty = Engine("127.0.0.1", "P2PHANDSHAKE", "tcp", None)
    found = result("ping", empty.name(), "-c", "2", *QUICK)
    assert found["handshake"]["answered"] == 2 and "read" not in found


def test_memory_that_peers_may_only_write_is_not_read() -> None:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    node = Node(4096)
    assert engine.register_memory(node.address, 4096, access="write") == 0
    found = result("ping", f"127.0.0.1:{engine.get_rpc_port()}", "-c", "1", *QUICK)
    assert "read" not in found


def test_a_peer_that_is_not_there_is_a_failure_with_its_reason() -> None:
    status, out, err = run("-v", "ping", "127.0.0.1:9", "-c", "2", *QUICK)
    assert status == 1
    assert "127.0.0.1:9 cannot be asked what it offers" in err
    assert out.count("connection refused") == 2
    assert "handshake: 2 asked, 0 answered, 100% without an answer\n" in out
    status, out, _ = run("--json", "ping", "127.0.0.1:9", "-c", "1", *QUICK)
    assert status == 1 and json.loads(out)["handshake"] == {"asked": 1, "answered": 0}


def test_ctrl_c_ends_it_with_the_statistics_and_success() -> None:
    node = Node(4096)
    with running("ping", node.name, *QUICK) as ping:
        ping.line("^3: ")
        assert ping.end(signal.SIGINT) == 0
        ping.line("^handshake: .* answered, 0% without an answer")
        ping.line("^read of 8 bytes: ")


def test_quiet_prints_the_statistics_only() -> None:
    node = Node(4096)
    _, out, _ = run("-q", "ping", node.name, "-c", "2", *QUICK)
    assert [line.split(":")[0] for line in out.splitlines()] == ["handshake", "read of 8 bytes"]


def test_a_server_that_ends_meanwhile_has_pings_without_an_answer() -> None:
    with serving("--size", "1M") as (peer, server), running("ping", peer, *QUICK, "-W", "2") as ping:
        ping.line("^2: ")
        server.process.kill()
        ping.line("without an answer")
        assert ping.end(signal.SIGINT) == 0


def test_a_mooncake_engine_is_pinged(start_peer: Peers) -> None:
    peer = start_peer(venvs.VERSIONS[-1]).create()
    peer.memory(4096)
    found = result("ping", peer.name, "-c", "2", *QUICK)
    assert found["kind"] == "mooncake"
    assert found["handshake"]["answered"] == found["read"]["answered"] == 2


def test_the_statistics_are_those_of_the_times() -> None:
    times = Times()
    for taken in (0.001, 0.003, None, 0.005):
        times.add(taken)
    told = times.described()
    assert (told["asked"], told["answered"], told["min_seconds"], told["max_seconds"]) == (4, 3, 0.001, 0.005)
    assert told["avg_seconds"] == pytest.approx(0.003)
    assert told["mdev_seconds"] == pytest.approx(0.001632993)
    assert times.line("x").endswith("25% without an answer, min/avg/max/mdev 1.000/3.000/5.000/1.633 ms")


def test_this_sides_address_is_the_one_that_leads_to_the_peer() -> None:
    assert own_address("127.0.0.1:5") == "127.0.0.1"
    for nobody in ("no-such-host.invalid:5", "a..b:5", f"{'a' * 64}.b", "\udcff"):
        assert own_address(nobody) == "127.0.0.1"


def test_names_in_a_store_differ_between_containers_with_the_same_host_name() -> None:
    program = (
        "import os; os.getpid = lambda: 1; from kvferry._command.engines import own_name;"
        "print(own_name('etcd://10.0.0.9:2379', None))"
    )
    names = {subprocess.check_output([sys.executable, "-c", program], env=environment()) for _ in range(2)}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("node1", "node1", None),
        ("node1:15003", "node1", 15003),
        ("node1:0", "node1", 0),
        ("10.0.0.7:15003:npu_3", "10.0.0.7", 15003),
        ("::1", "::1", None),
        ("[2001:db8::5]", "2001:db8::5", None),
        ("[2001:db8::5]:15003", "2001:db8::5", 15003),
        ("[2001:db8::5]:15003:npu_12", "2001:db8::5", 15003),
        ("fe80::1%eth0", "fe80::1%eth0", None),
        ("fe80::1%eth0:15003", "fe80::1%eth0", 15003),
        ("::ffff:10.0.0.7:15003", "::ffff:10.0.0.7", 15003),
        ("fd00::2:15858", "fd00::2", 15858),
        ("FD00::2:15858:npu_3", "FD00::2", 15858),
        ("fd00::2:1585", "fd00::2:1585", None),
        ("http://node1:8000", "http://node1:8000", None),
        ("node1:65535", "node1", 65535),
        ("node1:65536", "node1:65536", None),
        ("node1:\u0661", "node1:\u0661", None),
        ("[::1]:99999", "[::1]:99999", None),
        ("[::1]:1x", "[::1]:1x", None),
        ("[::1]x", "[::1]x", None),
        ("[::1", "[::1", None),
    ],
)
def test_names_are_split_as_engines_split_them(name: str, host: str, port: int | None) -> None:
    assert split(name) == (host, port)


@pytest.mark.parametrize("arguments", [("-s", "2M"), ("-c", "0"), ("-i", "-1"), ("-W", "0")])
def test_options_that_make_no_sense_are_refused(arguments: tuple[str, str]) -> None:
    status, _, err = run("ping", "127.0.0.1:9", *arguments)
    assert status == 2 and arguments[0] in err
