"""Engines with a secret or certificates: who gets in, what is moved, and what both sides say of a refusal."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Callable

import pytest

from support import devices, wire
from support.authority import Authority
from support.peer import Peer
from support.peers import Peers
from support.process import until
from support.venvs import VERSIONS

SIZE = 1 << 20
BLOCKS = ((0, 1), (3, 100), (4096, 4096), (8192 + 13, 65536 + 7), (131072, 700_001))
PLACES = ("host", "npu:0")

SecretFile = Callable[..., str]


@pytest.fixture
def secret_file(tmp_path: Path) -> SecretFile:
    """Make a file with secrets, one on each line; with none, with a new one."""

    def make(*lines: str) -> str:
        file = tmp_path / f"secret-{secrets.token_hex(4)}"
        file.touch(0o600)
        file.write_text("\n".join(lines or (secrets.token_hex(32),)) + "\n")
        return str(file)

    return make


def engine(start_peer: Peers, **settings: str) -> Peer:
    return devices.start(start_peer, MC_LOG_LEVEL="INFO", **settings).create()


def exchange(near: Peer, far: Peer, place: str) -> None:
    """Move blocks of host and device memory in both directions, and a notification."""
    here, there = near.memory(SIZE, 1, place=place), far.memory(SIZE, 2, place=place)
    for opcode in ("write", "read"):
        for how in ("sync", "batch"):
            moves = [(here, there, (start, start + 5, length)) for start, length in BLOCKS]
            devices.transfer(opcode, moves, how)
    here.check()
    there.check()
    assert near.call("send_probe", far.name) == 0


def refused(near: Peer, far: Peer) -> None:
    """Check that no byte gets through, however it is tried."""
    here, there = near.memory(4096, 1), far.memory(4096, 2)
    for opcode in ("write", "read"):
        assert near.move(far.name, opcode, [[here.address, there.address, 4096]])["code"] != 0
    here.check()
    there.check()


@pytest.mark.each_path
@pytest.mark.devices
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", ["", "prefer"])
def test_engines_with_one_secret_move_host_and_device_memory(
    start_peer: Peers, secret_file: SecretFile, place: str, mode: str
) -> None:
    settings = {"KVFERRY_SECRET_FILE": secret_file(), **({"KVFERRY_SECURITY": mode} if mode else {})}
    near, far = engine(start_peer, **settings), engine(start_peer, **settings)
    assert near.logs(f'"security": "{mode or "require"}, by the cluster secret')
    exchange(near, far, place)


@pytest.mark.each_path
def test_engines_with_certificates_of_one_authority_move_memory(start_peer: Peers, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "cluster")
    near, far = (engine(start_peer, **authority.issue(name)) for name in ("decode.kv", "prefill.kv"))
    exchange(near, far, "host")


@pytest.mark.each_path
@pytest.mark.parametrize("case", ["another secret", "none", "none there", "another authority", "not named"])
def test_strangers_are_refused_and_both_sides_say_so(
    start_peer: Peers, secret_file: SecretFile, tmp_path: Path, case: str
) -> None:
    here: dict[str, str]
    there: dict[str, str]
    if case in ("another authority", "not named"):
        authority = Authority(tmp_path / "cluster")
        other = authority if case == "not named" else Authority(tmp_path / "elsewhere")
        here, there = other.issue("decode.kv"), authority.issue("prefill.kv")
        if case == "not named":
            there["KVFERRY_TLS_PEERS"] = "*.elsewhere"
            near_says, says = "refuses this engine's certificate", "KVFERRY_TLS_PEERS names none"
        else:
            near_says, says = "KVFERRY_TLS_CA does not vouch for", "refuses this engine's certificate"
    else:
        here, there = {"KVFERRY_SECRET_FILE": secret_file()}, {"KVFERRY_SECRET_FILE": secret_file()}
        near_says, says = "another cluster secret", "refuses this engine's certificate"
        if case == "none":
            here, near_says, says = {}, "does not begin TLS", "KVFERRY_SECURITY=require demands it here"
        elif case == "none there":
            there, near_says, says = {}, "amid the TLS handshake", "security is off here"
    near, far = engine(start_peer, **here), engine(start_peer, **there)
    refused(near, far)
    assert near.logs(near_says), near.log()
    assert far.logs(says), far.log()


def test_a_raw_peer_is_served_by_the_modes_that_say_so(start_peer: Peers, secret_file: SecretFile) -> None:
    path = secret_file()
    for mode, served in (("off", True), ("prefer", True), ("require", False)):
        far = engine(start_peer, KVFERRY_SECRET_FILE=path, KVFERRY_SECURITY=mode)
        memory = far.memory(4096, 3)
        described = wire.descriptor(far.name)
        if not served:
            assert list(described) == ["name", "protocol"]
            assert "KVFERRY_SECURITY=require" in described["protocol"]
            assert far.logs("KVFERRY_SECURITY=require demands it here")
            continue
        with wire.connect(("127.0.0.1", described["tcp_data_port"])) as connection:
            connection.sendall(wire.header(wire.READ | wire.V2, memory.address, 4096))
            assert wire.read_status(connection) == 0
            assert wire.receive(connection, 4096) == memory.model


@pytest.mark.parametrize("kind", VERSIONS[-1:])
def test_mooncake_is_refused_by_require_and_served_by_prefer(
    start_peer: Peers, secret_file: SecretFile, kind: str
) -> None:
    path = secret_file()
    theirs = start_peer(kind).create()
    for mode in ("prefer", "require"):
        ours = engine(start_peer, KVFERRY_SECRET_FILE=path, KVFERRY_SECURITY=mode)
        if mode == "prefer":
            here, there = theirs.memory(4096, 1), ours.memory(4096, 2)
            devices.transfer("write", [(here, there, (0, 0, 4096))], "sync")
            there.check()
            devices.transfer("read", [(there, here, (0, 0, 4096))], "sync")
            there.check()
            continue
        refused(theirs, ours)
        assert ours.logs("KVFERRY_SECURITY=require demands it here"), ours.log()
        refused(ours, theirs)
        assert ours.logs("amid the TLS handshake"), ours.log()


def takes(peer: Peer, other: Peer, changes: int) -> bool:
    """Tell whether a peer has taken so many changes of its file. It looks at the file when engines shake hands."""
    assert other.call("send_probe", peer.name) == 0
    return peer.log().count("changed files are in force") >= changes


def wait_for_secrets(near: Peer, far: Peer, changes: int) -> None:
    until(lambda: takes(near, far, changes) and takes(far, near, changes), 30, "both have taken the changed file")


@pytest.mark.each_path
def test_a_secret_is_replaced_while_engines_work(start_peer: Peers, secret_file: SecretFile) -> None:
    before, after = secrets.token_hex(32), secrets.token_hex(32)
    files = [Path(secret_file(before)), Path(secret_file(before))]
    near, far = (engine(start_peer, KVFERRY_SECRET_FILE=str(file)) for file in files)
    exchange(near, far, "host")
    for step, lines in enumerate(([after, before], [after]), 1):
        for file in files:
            written = file.with_suffix(".next")
            written.touch(0o600)
            written.write_text("\n".join(lines) + "\n")
            written.rename(file)
        wait_for_secrets(near, far, step)
    late = engine(start_peer, KVFERRY_SECRET_FILE=secret_file(after))
    for peer in (near, far):
        exchange(late, peer, "host")
        exchange(peer, late, "host")
    old = engine(start_peer, KVFERRY_SECRET_FILE=secret_file(before))
    refused(old, far)
    assert old.logs("another cluster secret"), old.log()
    assert far.logs("refuses this engine's certificate"), far.log()
