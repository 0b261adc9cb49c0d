"""Peers that cannot be reached or do not behave at the handshake: before a data connection is made."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import Any

import pytest

from support import rawpeer, wire
from support.bad_peers import check_bad_peer, fail_in_time, nothing_left
from support.peers import Peers
from support.process import Holdings
from support.rawpeer import BASE, Handler, RawTarget, metadata_reply, reply
from support.world import GIVEN_UP, QUICK, World, still_well

MANY = 200  # connections that are left half-open at once
MILLION = 1_000_000
BURDEN = 1 << 30  # bytes: some times the 60 MB of text that a million buffers are

# Our engine is asked.

MANY_BUFFERS = json.dumps({"buffers": [{"name": "cpu:0", "addr": 4096, "length": 4096}] * MILLION}).encode()
BAD_REQUESTS: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\x05\x00",
    "a length and no more": struct.pack("<Q", 100),
    "half a body": struct.pack("<QB", 100, wire.METADATA) + b'{"name"',
    "length 0": bytes(8),
    "length over the limit": struct.pack("<QB", (1 << 20) + 1, wire.METADATA) + b" " * 4096,
    "length 2^63": struct.pack("<QB", 1 << 63, wire.METADATA) + b" " * 4096,
    "length 2^64-1": b"\xff" * 4096,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a type that there is not": wire.handshake_frame(200, b"{}"),
    "an old connection request that is no JSON": struct.pack("<Q", 7) + b"{\x00\x01\x02\x03\x04\x05",
    "a descriptor that is no JSON": wire.handshake_frame(wire.METADATA, b"\xff\xfe{"),
    "a descriptor of a million buffers": wire.handshake_frame(wire.METADATA, MANY_BUFFERS),
    "a notification that is no JSON": wire.handshake_frame(wire.NOTIFY, b"]"),
    "a notification of numbers": wire.handshake_frame(wire.NOTIFY, b'{"name": 1, "notify_msg": {}}'),
    "a notification without a message": wire.handshake_frame(wire.NOTIFY, b"{}"),
    "a deep notification": wire.handshake_frame(wire.NOTIFY, b"[" * 500_000),
    "a connection request that is no JSON": wire.handshake_frame(wire.CONNECTION, b"rdma"),
}


@pytest.mark.parametrize("request_", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_handshake_request_leaves_others_served(world: World, request_: bytes) -> None:
    """The sender neither closes nor reads: the target ends it, or keeps it within bounds, and answers the next."""
    with still_well(world), wire.connect(wire.split_name(world.engine.name)) as connection:
        wire.send_some(connection, request_)
    assert world.engine.ask("notifies", engine="main") == [], "a bad request became a notification"


def test_handshakes_that_never_end_are_ended_and_keep_nobody_else_waiting(world: World) -> None:
    address = wire.split_name(world.engine.name)
    with still_well(world), contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(wire.connect(address)) for _ in range(MANY)]
        for connection in crowd:
            wire.send_some(connection, struct.pack("<Q", 100))
        assert wire.descriptor(world.engine.name)
        assert world.healthy.call("send_probe", world.engine.name) == 0


# Our engine asks.

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


def test_a_probe_of_a_peer_that_died_says_so(start_peer: Peers) -> None:
    prober = start_peer(**QUICK).create()
    target = start_peer().create()
    assert prober.call("send_probe", target.name) == 0
    target.kill()
    assert prober.call("send_probe", target.name, limit=GIVEN_UP) == -102


@pytest.mark.parametrize("name", ("no-such-host.invalid:15000", "127.0.0.1:1"))
def test_a_peer_that_cannot_be_reached_has_no_first_buffer(world: World, name: str) -> None:
    assert world.engine.call("get_first_buffer_address", name, limit=GIVEN_UP) == 0


def described(**changes: Any) -> Handler:
    """Answer with a descriptor that is right but for these keys; None removes one."""

    def handler(target: RawTarget, connection: socket.socket) -> None:
        whole = {**target.descriptor(), **changes}
        body = json.dumps({k: v for k, v in whole.items() if v is not None}).encode()
        metadata_reply(body)(target, connection)

    return handler


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
