"""Our engine as the target of peers that do not behave."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable

import pytest

from support import wire
from support.memory import Memory
from support.process import connections_to, until
from support.wire import READ, V2, WRITE
from support.world import World, still_well

MANY = 200  # connections that are left half-open at once
ENDED_LIMIT = 10.0  # seconds within which a target ends what it does not serve


# The handshake port.

MILLION = json.dumps({"buffers": [{"name": "cpu:0", "addr": 4096, "length": 4096}] * 1_000_000}).encode()
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
    "a descriptor of a million buffers": wire.handshake_frame(wire.METADATA, MILLION),
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
        send_some(connection, request_)
    assert world.engine.ask("notifies", engine="main") == [], "a bad request became a notification"


def send_some(connection: socket.socket, data: bytes) -> None:
    """Send what the other side takes; it may close before it has all."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def test_handshakes_that_never_end_are_ended_and_keep_nobody_else_waiting(world: World) -> None:
    address = wire.split_name(world.engine.name)
    with still_well(world), contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(wire.connect(address)) for _ in range(MANY)]
        for connection in crowd:
            send_some(connection, struct.pack("<Q", 100))
        assert wire.descriptor(world.engine.name)
        assert world.healthy.call("send_probe", world.engine.name) == 0


# The data port.


def data_connection(world: World) -> socket.socket:
    return wire.connect(wire.data_address(world.engine.name))


BAD_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "half a header": wire.header(WRITE | V2, 4096, 100)[:11],
    "garbage": b"\xa5" * 4096,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES)
@pytest.mark.parametrize("closes", (True, False), ids=("closes", "stays"))
def test_bytes_that_are_no_request_leave_others_served(world: World, data: bytes, closes: bool) -> None:
    with still_well(world), data_connection(world) as connection:
        send_some(connection, data)
        if closes:
            with contextlib.suppress(OSError):  # it may be closed already
                connection.shutdown(socket.SHUT_WR)
            assert wire.ended(connection)


BAD_RANGES: dict[str, Callable[[Memory], tuple[int, int]]] = {
    "wrapped": lambda m: (2**64 - 50, 100),
    "wrapped to its start": lambda m: (m.address, 2**64 - 1),
    "foreign": lambda m: (4096, 100),
    "one byte before": lambda m: (m.address - 1, 100),
    "one byte behind": lambda m: (m.address + m.size - 99, 100),
    "half": lambda m: (m.address + m.size - 50, 100),
    "longer than registered": lambda m: (m.address, m.size + 1),
    "behind the last byte": lambda m: (m.address + m.size, 1),
    "no bytes": lambda m: (m.address, 0),
    "no bytes of nothing": lambda m: (0, 0),
}


@pytest.fixture
def alone(world: World) -> Memory:
    """Registered memory of the engine that has unregistered memory of the same process on both sides."""
    whole = world.engine.memory(3 << 16, 9, register=False)
    part = Memory(world.engine, whole.region, whole.address + (1 << 16), 1 << 16)
    assert world.engine.call("register_memory", part.address, part.size) == 0
    part.model = whole.model
    return part


@pytest.mark.parametrize("opcode", (READ, WRITE), ids=("read", "write"))
@pytest.mark.parametrize("version", (0, V2), ids=("v1", "v2"))
@pytest.mark.parametrize("place", BAD_RANGES)
def test_a_range_that_is_not_registered_is_refused_and_not_touched(
    world: World, alone: Memory, place: str, version: int, opcode: int
) -> None:
    address, size = BAD_RANGES[place](alone)
    with still_well(world), data_connection(world) as connection:
        send_some(connection, wire.header(opcode | version, address, size) + b"\xee" * 100)
        if version:
            assert wire.read_status(connection) == wire.REJECTED
        assert wire.ended(connection), "a v1 range that is refused is answered by nothing but the end"
    alone.check()


@pytest.mark.parametrize("opcode", (2, 0x7F, 2 | V2, 0xFF))
def test_an_opcode_that_there_is_not_is_refused(world: World, alone: Memory, opcode: int) -> None:
    with still_well(world), data_connection(world) as connection:
        send_some(connection, wire.header(opcode, alone.address, 100) + b"\xee" * 100)
        assert wire.read_status(connection) != wire.OK
        assert wire.ended(connection)
    alone.check()


def test_requests_before_a_refused_one_are_answered_and_the_one_behind_it_is_not_done(
    world: World, alone: Memory
) -> None:
    good = wire.header(WRITE | V2, alone.address, 4) + b"good"
    bad = wire.header(WRITE | V2, alone.address - 100, 4) + b"evil"
    late = wire.header(WRITE | V2, alone.address + 4, 4) + b"late"
    with still_well(world), data_connection(world) as connection:
        send_some(connection, good + bad + late)
        assert wire.read_status(connection) == wire.OK
        assert wire.read_status(connection) == wire.REJECTED
        assert wire.ended(connection)
    alone.model[1 << 16 : (1 << 16) + 4] = b"good"
    alone.check()


@pytest.mark.parametrize("version", (0, V2), ids=("v1", "v2"))
def test_a_write_that_breaks_off_changes_no_more_than_its_own_range(world: World, alone: Memory, version: int) -> None:
    start = 1 << 16
    with still_well(world), data_connection(world) as connection:
        send_some(connection, wire.header(WRITE | version, alone.address, 1000) + b"\xee" * 500)
        connection.shutdown(socket.SHUT_WR)
        assert wire.ended(connection), "a broken WRITE is not confirmed"
    found = bytes.fromhex(alone.peer.ask("peek", region=alone.region, offset=start, length=1000))
    assert found[500:] == alone.model[start + 500 : start + 1000]
    alone.model[start : start + 500] = found[:500]
    alone.check()


@pytest.mark.parametrize("version", (0, V2), ids=("v1", "v2"))
@pytest.mark.parametrize("opcode", (READ, WRITE), ids=("reader", "writer"))
def test_a_peer_that_stalls_is_ended_and_frees_the_region(world: World, opcode: int, version: int) -> None:
    """Longer than the progress timeout: its region can be unregistered then, and late bytes change nothing."""
    memory = world.engine.memory(64 << 20, 5)
    with still_well(world), data_connection(world) as connection:
        send_some(connection, wire.header(opcode | version, memory.address, memory.size))
        if opcode == WRITE:
            connection.sendall(bytes(memory.model[:1000]))
        else:
            assert connection.recv(1) != b""
        assert world.engine.call("unregister_memory", memory.address, limit=ENDED_LIMIT) == 0
        send_some(connection, b"\xee" * 5000)
        wait_for_end(connection)
    memory.check()


def wait_for_end(connection: socket.socket) -> None:
    """Read what was on its way until the connection ends, which must be soon."""
    connection.settimeout(ENDED_LIMIT)
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 20):
            pass


@pytest.mark.parametrize("opcode", (READ, WRITE), ids=("reader", "writer"))
def test_a_peer_that_stalls_longer_than_the_progress_timeout_is_ended(world: World, opcode: int) -> None:
    memory = world.engine.memory(64 << 20, 5)
    address = wire.data_address(world.engine.name)
    with still_well(world), wire.connect(address) as connection:
        here = connection.getsockname()[1]
        send_some(connection, wire.header(opcode | V2, memory.address, memory.size))
        until(lambda: here not in connections_to(address[1]), ENDED_LIMIT, "the stalled connection is closed")
    assert world.engine.call("unregister_memory", memory.address) == 0


def test_connections_that_stay_half_open_keep_nobody_else_waiting(world: World) -> None:
    address = wire.data_address(world.engine.name)
    with still_well(world), contextlib.ExitStack() as stack:
        crowd: list[socket.socket] = [stack.enter_context(wire.connect(address)) for _ in range(MANY)]
        for connection in crowd:
            send_some(connection, wire.header(WRITE | V2, 4096, 100)[:10])
