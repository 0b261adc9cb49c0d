"""The command kvferry metadata-server: its options, its end, and the engines that find each other by it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from support import process, venvs
from support.memory import Memory, transfer
from support.metadata_server import MetadataServer, request
from support.peer import Peer, environment
from support.peers import Peers, unavailable

MOONCAKE = ("0.3.12", "0.3.13")
PAIRS = [*((kind, kind) for kind in MOONCAKE), *(("ours", kind) for kind in MOONCAKE), ("ours", "ours")]
LOCAL = {"MC_TCP_BIND_ADDRESS": "127.0.0.1"}
SIZE = 1 << 20


def register(peers: Peers, kind: str, server: MetadataServer, name: str, **settings: str) -> Peer:
    """Start an engine that registers under a name."""
    peer = peers(kind, **LOCAL, **settings)
    assert peer.try_create(name, server.address) == 0
    peer.name = name
    return peer


def keys_of(name: str, cluster: str = "") -> list[str]:
    return [f"mooncake/{cluster}rpc_meta/{name}", f"mooncake/{cluster}ram/{name}"]


def check_moves(one: Memory, other: Memory) -> None:
    """Write and read in both directions, and compare every byte."""
    for local, remote in ((one, other), (other, one)):
        transfer(local, remote, "write", [(100, 5000, 70_000)], "sync")
        transfer(local, remote, "read", [(200_000, 300_001, 70_000)], "sync")
    one.check()
    other.check()


@pytest.mark.parametrize("cluster", ["", "blue/"])
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_engines_find_each_other(start_peer: Peers, tmp_path: Path, kinds: tuple[str, str], cluster: str) -> None:
    settings = {"MC_METADATA_CLUSTER_ID": cluster} if cluster else {}
    with MetadataServer(tmp_path / "server.log") as server:
        one = register(start_peer, kinds[0], server, "node-1", **settings)
        other = register(start_peer, kinds[1], server, "node-2:17123", **settings)
        check_moves(one.memory(SIZE, 1), other.memory(SIZE, 2))
        for name in ("node-1", "node-2:17123"):
            place, segment = (json.loads(server.ask("GET", key)[1]) for key in keys_of(name, cluster))
            assert place["ip_or_host_name"] == "127.0.0.1"
            assert segment["name"] == name
            assert [b["length"] for b in segment["buffers"]] == [SIZE]
        assert other.close() == 0
        assert [server.ask("GET", key)[0] for key in keys_of("node-2:17123", cluster)] == [404, 404]
        assert server.ask("GET", keys_of("node-1", cluster)[0])[0] == 200


def test_a_killed_server_comes_back_with_its_snapshot(start_peer: Peers, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    with MetadataServer(tmp_path / "first.log", f"--snapshot={snapshot}") as server:
        old = register(start_peer, "0.3.13", server, "old")
        held = old.memory(SIZE, 1)
        kept = [server.ask("GET", key) for key in keys_of("old")]
        # The snapshot follows within a second.
        process.until(lambda: "mooncake/ram/old" in snapshot.read_text(), 30, "the entry is in the snapshot")
        before = snapshot.read_text()
        server.ask("PUT", "last", "change")
        process.until(lambda: snapshot.read_text() != before, 30, "a change is in the snapshot")
        server.end(signal.SIGKILL)
        port = server.port
    with MetadataServer(tmp_path / "second.log", f"--snapshot={snapshot}", port=port) as server:
        assert [server.ask("GET", key) for key in keys_of("old")] == kept
        assert server.ask("GET", "last") == (200, "change")
        new = register(start_peer, "0.3.13", server, "new")
        check_moves(new.memory(SIZE, 2), held)


def test_a_server_without_a_snapshot_forgets(tmp_path: Path) -> None:
    with MetadataServer(tmp_path / "first.log") as server:
        assert server.ask("PUT", "k", "v")[0] == 200
        assert server.end() == 0
        port = server.port
    with MetadataServer(tmp_path / "second.log", port=port) as server:
        assert server.ask("GET", "k")[0] == 404


@pytest.mark.parametrize("kind", ["0.3.13", "ours"])
def test_an_engine_of_ours_takes_over_the_name_of_a_killed_one(start_peer: Peers, tmp_path: Path, kind: str) -> None:
    with MetadataServer(tmp_path / "log") as server:
        dead = register(start_peer, kind, server, "node")
        before = server.ask("GET", keys_of("node")[0])[1]
        assert start_peer("ours", **LOCAL).try_create("node", server.address) != 0
        assert server.ask("GET", keys_of("node")[0]) == (200, before)
        dead.kill()
        heir = register(start_peer, "ours", server, "node")
        assert json.loads(server.ask("GET", keys_of("node")[0])[1])["rpc_port"] == heir.call("get_rpc_port")
        check_moves(register(start_peer, "0.3.13", server, "other").memory(SIZE, 1), heir.memory(SIZE, 2))


def test_an_engine_of_ours_sends_the_token_and_checks_the_certificate(start_peer: Peers, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    options = (f"--tls-cert={cert}", f"--tls-key={key}", "--token=secret")
    with MetadataServer(tmp_path / "log", *options) as server:
        trusting = {"MC_METADATA_HTTP_TOKEN": "secret", "KVFERRY_METADATA_CA": str(cert)}
        one, other = (register(start_peer, "ours", server, name, **trusting) for name in ("one", "two"))
        check_moves(one.memory(SIZE, 1), other.memory(SIZE, 2))
        for lacking in trusting:
            settings = {name: value for name, value in trusting.items() if name != lacking}
            assert start_peer("ours", **LOCAL, **settings).try_create("three", server.address) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_the_last_change_on_disk(tmp_path: Path, number: int) -> None:
    snapshot = tmp_path / "snapshot"
    with MetadataServer(tmp_path / "first.log", f"--snapshot={snapshot}") as server:
        for i in range(20):
            assert server.ask("PUT", f"k{i}", "v")[0] == 200
        assert server.end(number) == 0
        assert server.log() == ""
    with MetadataServer(tmp_path / "second.log", f"--snapshot={snapshot}") as server:
        assert server.ask("GET", "k19") == (200, "v")
        assert "kvferry_metadata_keys 20\n" in server.look("/metrics")[1]


def test_health_and_metrics_are_told(tmp_path: Path) -> None:
    with MetadataServer(tmp_path / "log", "--path=/cluster/a") as server:
        assert server.address == f"http://127.0.0.1:{server.port}/cluster/a"
        assert server.ask("PUT", "k", "value")[0] == 200
        assert server.look("/health") == (200, "ok\n")
        text = server.look("/metrics")[1]
        assert 'kvferry_metadata_requests_total{method="PUT",status="200"} 1\n' in text
        assert "kvferry_metadata_bytes 6\n" in text


def test_bounds_are_those_of_the_options(tmp_path: Path) -> None:
    with MetadataServer(tmp_path / "log", "--max-keys=2", "--max-value=1K", "--max-bytes=2K") as server:
        assert server.ask("PUT", "a", "v" * 1025)[0] == 413
        assert server.ask("PUT", "a", "v" * 1024)[0] == 200
        assert server.ask("PUT", "b", "v" * 1024)[0] == 507
        assert server.ask("PUT", "b", "v")[0] == 200
        assert server.ask("PUT", "c", "v")[0] == 507


@pytest.mark.parametrize(
    ("options", "settings"),
    [(["--token=secret"], {}), ([], {"MC_METADATA_HTTP_TOKEN": "secret"})],
    ids=("option", "variable"),
)
def test_a_token_is_required(tmp_path: Path, options: list[str], settings: dict[str, str]) -> None:
    with MetadataServer(tmp_path / "log", *options, settings=settings) as server:
        assert server.ask("PUT", "k", "v")[0] == 401
        assert server.ask("PUT", "k", "v", token="other")[0] == 401
        assert server.ask("PUT", "k", "v", token="secret")[0] == 200
        assert server.ask("GET", "k", token="secret") == (200, "v")
        assert "secret" not in server.address


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for the loopback device, and return the files with it and its key."""
    if not shutil.which("openssl"):
        unavailable("a certificate cannot be made: install openssl")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kvferry", "-days", "2"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(make + names, check=True, capture_output=True, timeout=60)
    return cert, key


def test_https_is_served(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with MetadataServer(tmp_path / "log", f"--tls-cert={cert}", f"--tls-key={key}") as server:
        assert server.address.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        url = f"{server.address}?key=k"
        assert request("PUT", url, "v", context=trusted)[0] == 200
        assert request("GET", url, context=trusted) == (200, "v")


def test_engines_show_the_certificate_that_the_server_demands(start_peer: Peers, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    options = (f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-client-ca={cert}")
    with MetadataServer(tmp_path / "log", *options) as server:
        trust = {"KVFERRY_METADATA_CA": str(cert)}
        shown = {"KVFERRY_METADATA_CERT": str(cert), "KVFERRY_METADATA_KEY": str(key)}
        register(start_peer, "ours", server, "with-one", **trust, **shown)
        stranger = start_peer("ours", **LOCAL, **trust)
        assert stranger.try_create("without", server.address) != 0
        assert stranger.logs("403 Forbidden")
        assert stranger.logs("client certificate")


def test_a_second_server_on_one_snapshot_is_told(tmp_path: Path) -> None:
    file = tmp_path / "snapshot"
    with MetadataServer(tmp_path / "log", f"--snapshot={file}") as server:
        said = refused(tmp_path, f"--snapshot={file}")
        assert "another server uses it (process " in said
        assert server.ask("PUT", "k", "v")[0] == 200


def refused(tmp_path: Path, *options: str, port: int = 0) -> str:
    """Start a server, which must not run, and return what it says."""
    log = tmp_path / "refused.log"
    with pytest.raises(AssertionError, match="does not run"):
        MetadataServer(log, *options, port=port)
    assert "Traceback" not in log.read_text()
    return log.read_text()


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(tmp_path, port=port)
    assert said.startswith("kvferry metadata-server failed: ")
    assert f"127.0.0.1:{port}" in said and "address already in use" in said


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--port=65536", "--port"),
        ("--max-keys=0", "--max-keys"),
        ("--max-value=many", "--max-value"),
        ("--max-connections=1G", "number of connections"),
        ("--max-bytes=99999999999999999999", "--max-bytes"),
        ("--path=metadata", "does not start with /"),
        ("--tls-cert=/nonexistent", "are given together"),
        ("--tls-client-ca=/nonexistent", "need a TLS certificate"),
        ("--host=192.0.2.77", "192.0.2.77"),
        ("--snapshot=/nonexistent/file", "/nonexistent/file cannot be written"),
    ],
)
def test_an_option_that_makes_no_sense_is_told(tmp_path: Path, option: str, words: str) -> None:
    assert words in refused(tmp_path, option)


def test_a_file_that_is_no_snapshot_is_told_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("not to be lost\n")
    said = refused(tmp_path, f"--snapshot={file}")
    assert f"the snapshot {file} cannot be read, and is left as it is" in said
    assert file.read_text() == "not to be lost\n"


def test_changes_that_are_lost_in_the_end_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with MetadataServer(tmp_path / "log", f"--snapshot={folder}/snapshot") as server:
        shutil.rmtree(folder)
        assert server.ask("PUT", "k", "v")[0] == 200
        assert server.end() == 1
        assert f"the snapshot {folder}/snapshot cannot be written" in server.log()


def test_the_options_of_mooncakes_server_are_ours_too(tmp_path: Path) -> None:
    try:
        program = venvs.http_metadata_server(venvs.VERSIONS[-1])
    except venvs.Unavailable as e:
        unavailable(str(e))
    theirs, ours = (
        subprocess.run([*command, "--help"], env=environment(venvs.ours(), ours=True), capture_output=True, text=True)
        for command in (program, [sys.executable, "-m", "kvferry", "metadata-server"])
    )
    options = set(re.findall(r"--[a-z][a-z-]*", theirs.stdout))
    assert options >= {"--host", "--port", "--log-level"}
    assert options <= set(re.findall(r"--[a-z][a-z-]*", ours.stdout))


def test_a_log_level_of_mooncakes_server_decides_what_is_logged(tmp_path: Path) -> None:
    warning = "without a token"
    for level, logged in (("CRITICAL", False), ("ERROR", False), ("WARNING", True), ("DEBUG", True)):
        with MetadataServer(tmp_path / level, "--host=0.0.0.0", f"--log-level={level}") as server:
            assert server.end() == 0
            assert (warning in server.log()) == logged, level
    assert "invalid choice: 'LOUD'" in refused(tmp_path, "--log-level=LOUD")
