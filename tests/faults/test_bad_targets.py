"""Our engine as the initiator of transfers to peers that are not there or do not behave."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support import rawpeer, wire
from support.pattern import pattern
from support.peers import Peers
from support.process import Holdings
from support.rawpeer import BASE, Handler, RawTarget, answering, metadata_reply, reply
from support.world import GIVEN_UP, HUNG, World

LENGTH = 300_001  # bytes of a transfer that fails
AT_ONCE = 4  # such transfers at the same time
NAMED_WITHIN = 5.0  # seconds in which one of them must have left a message


def fail_in_time(world: World, name: str, opcode: str, at_once: int = AT_ONCE) -> None:
    """Try transfers to a bad peer, several at once; each must fail, in time."""
    block = [[world.scratch.address, BASE, LENGTH]]
    pending = [world.engine.start_move(name, opcode, block) for _ in range(at_once)]
    for result in [p.result(HUNG) for p in pending]:
        assert result["code"] < 0
        assert result["seconds"] < GIVEN_UP


@contextlib.contextmanager
def nothing_left(world: World) -> Iterator[None]:
    """Check that the engine holds no more once the body has ended."""
    leaks = world.leaks()
    yield
    leaks.check()


def check_bad_peer(world: World, name: str, opcode: str, named: tuple[str, ...]) -> None:
    """Try a bad peer, and look for a message that names it, while others are served."""

    def is_named() -> bool:
        return any(n in world.engine.log() for n in named)

    with world.unharmed():
        fail_in_time(world, name, opcode)
        deadline = time.monotonic() + NAMED_WITHIN
        while not is_named():  # the log holds back lines that are too many for one second
            assert time.monotonic() < deadline, f"no message names {' or '.join(named)}: {world.engine.log()}"
            fail_in_time(world, name, opcode, at_once=1)


opcodes = pytest.mark.parametrize("opcode", ("read", "write"))

UNREACHABLE = {
    "a name that nobody has": "no-such-host.invalid:15000",
    "a port that nobody listens on": "127.0.0.1:1",
    "an IPv6 port that nobody listens on": "[::1]:1",
    "a port out of range": "127.0.0.1:99999",
    "a port that is no number": "127.0.0.1:port",
    "a name of colons": "::::::",
}


@pytest.mark.parametrize("name", UNREACHABLE.values(), ids=UNREACHABLE)
def test_a_peer_that_cannot_be_reached_is_an_error_that_names_it(world: World, name: str) -> None:
    with nothing_left(world):
        check_bad_peer(world, name, "write", (name,))


def test_an_empty_name_is_an_error(world: World) -> None:
    fail_in_time(world, "", "write")


@pytest.mark.parametrize("name,code", (("no-such-host.invalid:15000", -101), ("127.0.0.1:1", -102)))
def test_a_probe_of_a_peer_that_cannot_be_reached_says_why(world: World, name: str, code: int) -> None:
    assert world.engine.call("send_probe", name, limit=GIVEN_UP) == code


@pytest.mark.parametrize("name", ("no-such-host.invalid:15000", "127.0.0.1:1"))
def test_a_peer_that_cannot_be_reached_has_no_first_buffer(world: World, name: str) -> None:
    assert world.engine.call("get_first_buffer_address", name, limit=GIVEN_UP) == 0


# Handshakes.


def described(**changes: Any) -> Handler:
    """Answer with a descriptor that is right but for these keys; None removes one."""

    def handler(target: RawTarget, connection: socket.socket) -> None:
        whole = {**target.descriptor(), **changes}
        body = json.dumps({k: v for k, v in whole.items() if v is not None}).encode()
        metadata_reply(body)(target, connection)

    return handler


MILLION = 1_000_000
BURDEN = 1 << 30  # bytes: some times the 60 MB of text that a million buffers are
BAD_HANDSHAKES: dict[str, Handler] = {
    "never answers": rawpeer.stall,
    "reads and never answers": rawpeer.swallow,
    "closes at once": rawpeer.close_at_once,
    "resets at once": rawpeer.reset_at_once,
    "closes within the length": reply(b"\x10\x00\x00"),
    "closes within the body": reply(wire.handshake_frame(wire.METADATA, b'{"name": "x", "protocol"')[:-9]),
    "stops within the body": reply(struct.pack("<QB", 1000, wire.METADATA) + b"{", keep=True),
    "length 0": reply(bytes(8)),
    "length over the limit": reply(struct.pack("<QB", (1 << 20) + 1, wire.METADATA), b" " * (1 << 20)),
    "length 2^63": reply(struct.pack("<QB", 1 << 63, wire.METADATA), b"{}"),
    "length 2^64-1": reply(b"\xff" * 64),
    "a reply of another type": reply(wire.handshake_frame(wire.NOTIFY, b'{"name": "", "notify_msg": "success"}')),
    "an HTTP server": reply(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "no JSON": metadata_reply(b"\x00\xff{"),
    "null": metadata_reply(b"null"),
    "a number": metadata_reply(b"42"),
    "an array": metadata_reply(b"[]"),
    "an empty object": metadata_reply(b"{}"),
    "deep": metadata_reply(b"[" * 500_000),
    "no protocol": described(protocol=None),
    "another protocol": described(protocol="rdma"),
    "no data port": described(tcp_data_port=None),
    "data port 0": described(tcp_data_port=0),
    "data port 65536": described(tcp_data_port=65536),
    "a negative data port": described(tcp_data_port=-1),
    "a data port of text": described(tcp_data_port="15001"),
    "buffers of text": described(buffers="all"),
    "a buffer of length 0": described(buffers=[{"name": "cpu:0", "addr": BASE, "length": 0}]),
    "a buffer with a negative address": described(buffers=[{"name": "cpu:0", "addr": -1, "length": 5}]),
    "a million buffers": described(buffers=[{"name": "cpu:0", "addr": BASE, "length": 4096}] * MILLION),
}


@pytest.mark.parametrize("handshake", BAD_HANDSHAKES)
def test_a_bad_handshake_is_an_error_that_names_the_peer(world: World, handshake: str) -> None:
    with nothing_left(world), RawTarget(on_data=rawpeer.Store(0), on_handshake=BAD_HANDSHAKES[handshake]) as target:
        check_bad_peer(world, target.name, "write", (target.name,))
        assert target.taken == 0, "a data connection was made for a descriptor that is none"


def test_a_handshake_port_that_does_not_accept_is_given_up(world: World) -> None:
    with nothing_left(world), socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        crowd = [socket.socket() for _ in range(4)]
        for s in crowd:
            s.setblocking(False)
            s.connect_ex(address)
        check_bad_peer(world, f"127.0.0.1:{address[1]}", "write", (str(address[1]),))
        for s in crowd:
            s.close()


# Data ports.

BAD_DATA_PORTS: dict[str, Handler] = {
    "takes nothing": rawpeer.stall,
    "reads and never answers": rawpeer.swallow,
    "closes at once": rawpeer.close_at_once,
    "resets at once": rawpeer.reset_at_once,
    "closes within the header": rawpeer.close_mid_header,
    "closes within the payload": rawpeer.serve_half,
    "stops within the payload": rawpeer.stall_half,
    "closes within the status": answering(wire.status_frame(wire.OK)[:5]),
    "stops within the status": answering(wire.status_frame(wire.OK)[:5], keep=True),
    "answers garbage": answering(b"\xa5" * 64, keep=True),
    "answers another magic": answering(wire.STATUS.pack(0x4D435457 << 32), keep=True),
    "answers like an HTTP server": answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "rejects": answering(wire.status_frame(wire.REJECTED)),
    "rejects and keeps the connection": answering(wire.status_frame(wire.REJECTED), keep=True),
    "answers status 2": answering(wire.status_frame(2)),
    "answers status 2^32-1": answering(wire.status_frame(0xFFFFFFFF), keep=True),
}
BAD_V1_DATA_PORTS = (
    "takes nothing",
    "closes at once",
    "resets at once",
    "closes within the header",
    "closes within the payload",
    "stops within the payload",
)


@opcodes
@pytest.mark.parametrize("port", BAD_DATA_PORTS)
def test_a_bad_data_port_is_an_error_that_names_the_peer(world: World, port: str, opcode: str) -> None:
    with nothing_left(world), RawTarget(BAD_DATA_PORTS[port]) as target:
        check_bad_peer(world, target.name, opcode, (target.name, f"127.0.0.1:{target.data_port}"))
        assert target.taken > 0


@opcodes
@pytest.mark.parametrize("port", BAD_V1_DATA_PORTS)
def test_a_bad_v1_data_port_is_an_error_that_names_the_peer(world: World, port: str, opcode: str) -> None:
    with nothing_left(world), RawTarget(BAD_DATA_PORTS[port], proto=1) as target:
        check_bad_peer(world, target.name, opcode, (target.name, f"127.0.0.1:{target.data_port}"))
        assert target.taken > 0


@opcodes
def test_a_data_port_that_never_accepts_is_given_up(world: World, opcode: str) -> None:
    with nothing_left(world), RawTarget(on_data=None) as target:
        check_bad_peer(world, target.name, opcode, (target.name, f"127.0.0.1:{target.data_port}"))


@opcodes
def test_a_data_port_that_nobody_listens_on_is_an_error(world: World, opcode: str) -> None:
    with nothing_left(world), RawTarget(changes={"tcp_data_port": 1}) as target:
        check_bad_peer(world, target.name, opcode, (target.name, "127.0.0.1:1"))


@opcodes
def test_a_target_that_takes_its_time_is_served_to_the_end(world: World, opcode: str) -> None:
    """Pauses shorter than the progress timeout are no fault."""
    store = rawpeer.Store(LENGTH, pause=1.0)
    store.data[:] = pattern(99, LENGTH)
    with nothing_left(world), RawTarget(store) as target, world.unharmed():
        world.scratch.fill(77)
        block = [[world.scratch.address, BASE, LENGTH]]
        assert world.engine.move(target.name, opcode, block)["code"] == 0
        if opcode == "read":
            world.scratch.model[:LENGTH] = store.data
        world.scratch.check()
        assert store.data == world.scratch.model[:LENGTH]


def test_a_descriptor_of_a_million_buffers_is_no_burden_where_the_limit_lets_it_through(start_peer: Peers) -> None:
    engine = start_peer(MC_HANDSHAKE_MAX_LENGTH=str(128 << 20)).create()
    memory = engine.memory(1 << 20, 1)
    store = rawpeer.Store(1 << 20)
    buffers = [{"name": "cpu:0", "addr": BASE + i * 4096, "length": 4096} for i in range(MILLION)]
    with RawTarget(store, on_handshake=described(buffers=buffers)) as target:
        before = Holdings.of(engine.pid).resident
        result = engine.move(target.name, "write", [[memory.address, BASE, 4096]])
        assert result["code"] == 0
        assert store.data[:4096] == memory.model[:4096]
        assert Holdings.of(engine.pid).resident - before < BURDEN
