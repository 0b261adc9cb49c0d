"""Initiators that do not behave on a data connection: others are served, and memory stays as it was."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable

import pytest

from support import wire
from support.hello import Connect
from support.memory import Memory
from support.process import connections_to, until
from support.wire import READ, V2, WRITE
from support.world import World, still_well

MANY = 200  # connections that are left half-open at once
MUCH = 32 << 20  # bytes: more than sockets hold
ENDED_LIMIT = 10.0  # seconds within which a target ends what it does not serve


BAD_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "half a header": wire.header(WRITE | V2, 4096, 100)[:11],
    "garbage": b"\xa5" * 4096,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES)
@pytest.mark.parametrize("closes", (True, False), ids=("closes", "stays"))
def test_bytes_that_are_no_request_leave_others_served(
    world: World, connect: Connect, data: bytes, closes: bool
) -> None:
    with still_well(world), connect() as connection:
        wire.send_some(connection, data)
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
def alone(world: World, memory: str) -> Memory:
    """Registered memory of the engine that has unregistered memory of the same allocation on both sides."""
    whole = world.engine.memory(3 << 16, 9, register=False, place=memory)
    part = Memory(world.engine, whole.region, whole.address + (1 << 16), 1 << 16)
    assert world.engine.call("register_memory", part.address, part.size) == 0
    part.model = whole.model
    return part


@pytest.mark.parametrize("opcode", (READ, WRITE), ids=("read", "write"))
@pytest.mark.parametrize("version", (0, V2), ids=("v1", "v2"))
@pytest.mark.parametrize("place", BAD_RANGES)
def test_a_range_that_is_not_registered_is_refused_and_not_touched(
    world: World, connect: Connect, alone: Memory, place: str, version: int, opcode: int
) -> None:
    address, size = BAD_RANGES[place](alone)
    with still_well(world), connect() as connection:
        wire.send_some(connection, wire.header(opcode | version, address, size) + b"\xee" * 100)
        if version:
            assert wire.read_status(connection) == wire.REJECTED
        assert wire.ended(connection), "a v1 range that is refused is answered by nothing but the end"
    alone.check()


@pytest.mark.parametrize("opcode", (2, 0x7F, 2 | V2, 0xFF))
def test_an_opcode_that_there_is_not_is_refused(world: World, connect: Connect, alone: Memory, opcode: int) -> None:
    with still_well(world), connect() as connection:
        wire.send_some(connection, wire.header(opcode, alone.address, 100) + b"\xee" * 100)
        assert wire.read_status(connection) != wire.OK
        assert wire.ended(connection)
    alone.check()


def test_requests_before_a_refused_one_are_answered_and_the_one_behind_it_is_not_done(
    world: World, connect: Connect, alone: Memory
) -> None:
    good = wire.header(WRITE | V2, alone.address, 4) + b"good"
    bad = wire.header(WRITE | V2, alone.address - 100, 4) + b"evil"
    late = wire.header(WRITE | V2, alone.address + 4, 4) + b"late"
    with still_well(world), connect() as connection:
        wire.send_some(connection, good + bad + late)
        assert wire.read_status(connection) == wire.OK
        assert wire.read_status(connection) == wire.REJECTED
        assert wire.ended(connection)
    alone.model[1 << 16 : (1 << 16) + 4] = b"good"
    alone.check()


@pytest.mark.parametrize("version", (0, V2), ids=("v1", "v2"))
def test_a_write_that_breaks_off_changes_no_more_than_its_own_range(
    world: World, connect: Connect, alone: Memory, version: int
) -> None:
    start = 1 << 16
    with still_well(world), connect() as connection:
        wire.send_some(connection, wire.header(WRITE | version, alone.address, 1000) + b"\xee" * 500)
        connection.shutdown(socket.SHUT_WR)
        assert wire.ended(connection), "a broken WRITE is not confirmed"
    found = bytes.fromhex(alone.peer.ask("peek", region=alone.region, offset=start, length=1000))
    assert found[500:] == alone.model[start + 500 : start + 1000]
    alone.model[start : start + 500] = found[:500]
    alone.check()


@pytest.mark.parametrize("version", (0, V2), ids=("v1", "v2"))
@pytest.mark.parametrize("opcode", (READ, WRITE), ids=("reader", "writer"))
def test_a_peer_that_stalls_is_ended_and_frees_the_region(
    world: World, connect: Connect, memory: str, opcode: int, version: int
) -> None:
    """Longer than the progress timeout: its region can be unregistered then, and late bytes change nothing."""
    region = world.engine.memory(MUCH, 5, place=memory)
    with still_well(world), connect() as connection:
        wire.send_some(connection, wire.header(opcode | version, region.address, region.size))
        if opcode == WRITE:
            connection.sendall(bytes(region.model[:1000]))
        else:
            assert connection.recv(1) != b""
        assert world.engine.call("unregister_memory", region.address, limit=ENDED_LIMIT) == 0
        wire.send_some(connection, b"\xee" * 5000)
        wait_for_end(connection)
    region.check()
    region.free()


def wait_for_end(connection: socket.socket) -> None:
    """Read what was on its way until the connection ends, which must be soon."""
    connection.settimeout(ENDED_LIMIT)
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 20):
            pass


@pytest.mark.parametrize("opcode", (READ, WRITE), ids=("reader", "writer"))
def test_a_peer_that_stalls_longer_than_the_progress_timeout_is_ended(
    world: World, connect: Connect, memory: str, opcode: int
) -> None:
    region = world.engine.memory(MUCH, 5, place=memory)
    with still_well(world), connect() as connection:
        is_closed = looking_at(connection)
        wire.send_some(connection, wire.header(opcode | V2, region.address, region.size))
        until(is_closed, ENDED_LIMIT, "the stalled connection is closed")
    assert world.engine.call("unregister_memory", region.address) == 0
    region.free()


def looking_at(connection: socket.socket) -> Callable[[], bool]:
    """Return what tells whether the engine has closed a connection, without reading what it has sent."""
    if connection.family == socket.AF_INET:
        here, there = connection.getsockname()[1], connection.getpeername()[1]
        return lambda: here not in connections_to(there)
    poll = select.poll()
    poll.register(connection, select.POLLHUP)
    return lambda: bool(poll.poll(0))


def test_connections_that_stay_half_open_keep_nobody_else_waiting(world: World, connect: Connect) -> None:
    with still_well(world), contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect()) for _ in range(MANY)]
        for connection in crowd:
            wire.send_some(connection, wire.header(WRITE | V2, 4096, 100)[:10])
