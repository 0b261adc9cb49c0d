"""What somebody may say first on a data connection: whoever it is, others are served, and nothing is copied wrongly."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from support import hello, wire
from support.hello import COPIES, Hello, Permit, connect_on_host, greeted, identity, read_answer, say, write_by_address
from support.memory import Memory
from support.peers import Peers
from support.wire import READ, V2
from support.world import World, still_well

PAGE = 4096


@pytest.fixture(scope="module", params=("0", "1"), ids=("tcp", "one-host"))
def ways(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[tuple[World, bool]]:
    """An engine with a healthy peer, and whether they meet on one host rather than by TCP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVFERRY_SAME_HOST", request.param)
        yield World(module_peers), request.param == "1"


@pytest.fixture
def world(ways: tuple[World, bool]) -> World:
    return ways[0]


@pytest.fixture(scope="module")
def host_world(module_peers: Peers) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVFERRY_SAME_HOST", "1")
        yield World(module_peers)


def connect(ways: tuple[World, bool]) -> socket.socket:
    name = ways[0].engine.name
    return connect_on_host(name) if ways[1] else wire.connect(wire.data_address(name))


def serves(connection: socket.socket, memory: Memory) -> bool:
    """Tell whether a READ on the connection is answered with what is there."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(wire.header(READ | V2, memory.address, PAGE))
        if wire.read_status(connection) == wire.OK:
            return wire.receive(connection, PAGE) == memory.model[:PAGE]
    return False


# The hello itself.

LENGTHS = (0, hello.BODY.size - 1, 4097, 2**32 - 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_hello_of_a_length_that_there_is_not_ends_the_connection(ways: tuple[World, bool], length: int) -> None:
    world = ways[0]
    with still_well(world), connect(ways) as connection:
        say(connection, Hello(identity(world.engine.name), length=length).encode())
        assert wire.ended(connection)


@pytest.mark.parametrize("closes", (True, False), ids=("closes", "stays"))
def test_a_hello_that_breaks_off_keeps_nobody_waiting(ways: tuple[World, bool], closes: bool) -> None:
    world = ways[0]
    with still_well(world), connect(ways) as connection:
        say(connection, Hello(identity(world.engine.name)).encode()[:50])
        if closes:
            connection.shutdown(socket.SHUT_WR)
        assert wire.ended(connection)


def test_a_hello_without_a_number_ends_the_connection(ways: tuple[World, bool]) -> None:
    world = ways[0]
    with still_well(world), connect(ways) as connection:
        say(connection, Hello(identity(world.engine.name), number=0).encode())
        assert wire.ended(connection)


def test_a_hello_for_another_engine_is_answered_by_who_is_there_and_nothing_is_served(ways: tuple[World, bool]) -> None:
    world = ways[0]
    with still_well(world), connect(ways) as connection:
        say(connection, Hello(os.urandom(16)).encode() + wire.header(READ | V2, world.near.address, PAGE))
        answer = read_answer(connection)
        assert answer is not None
        assert (answer.code, answer.target) == (hello.OTHER_ENGINE, identity(world.engine.name))
        assert wire.ended(connection)


def test_a_second_hello_on_a_connection_ends_it(ways: tuple[World, bool]) -> None:
    world = ways[0]
    with still_well(world), connect(ways) as connection:
        say(connection, Hello(identity(world.engine.name), 1).encode())
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        say(connection, Hello(identity(world.engine.name), 2).encode())
        assert wire.read_status(connection) != wire.OK
        assert not serves(connection, world.near)


def test_a_second_connection_with_a_number_is_refused_and_the_first_one_goes_on(ways: tuple[World, bool]) -> None:
    world = ways[0]
    first = Hello(identity(world.engine.name))
    with still_well(world), connect(ways) as connection, connect(ways) as second:
        say(connection, first.encode())
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        say(second, first.encode())
        answer = read_answer(second)
        assert answer is not None and answer.code == wire.REJECTED
        assert wire.ended(second)
        assert serves(connection, world.near)


def test_an_initiator_that_others_do_not_know_ends_none_of_their_connections(ways: tuple[World, bool]) -> None:
    world = ways[0]
    first = Hello(identity(world.engine.name))
    with still_well(world), connect(ways) as connection, connect(ways) as stranger:
        say(connection, first.encode())
        assert read_answer(connection) is not None
        say(stranger, Hello(first.target, number=2, ends=first.number).encode())
        answer = read_answer(stranger)
        assert answer is not None and answer.code == wire.OK
        assert serves(connection, world.near)


def test_a_connection_that_its_initiator_ends_by_another_one_serves_nothing_more(ways: tuple[World, bool]) -> None:
    world = ways[0]
    first = Hello(identity(world.engine.name))
    with still_well(world), connect(ways) as connection, connect(ways) as second:
        say(connection, first.encode())
        assert read_answer(connection) is not None
        say(second, Hello(first.target, number=2, ends=first.number, origin=first.origin).encode())
        answer = read_answer(second)
        assert answer is not None and answer.code == wire.OK
        assert not serves(connection, world.near)
        assert serves(second, world.near)


def test_a_hello_of_a_later_version_is_served(ways: tuple[World, bool]) -> None:
    world = ways[0]
    with still_well(world), connect(ways) as connection:
        say(connection, Hello(identity(world.engine.name), version=2, more=bytes(24)).encode())
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        assert serves(connection, world.near)


# The permit, on one host.


class Source:
    """Memory of this process that an engine may be made to copy from."""

    def __init__(self) -> None:
        self.data = os.urandom(PAGE)
        self._buffer = ctypes.create_string_buffer(self.data, PAGE)
        self.address = ctypes.addressof(self._buffer)


def copied(connection: socket.socket, memory: Memory) -> bool:
    """Tell whether the engine copies from this process into its memory; if not, its memory must be as it was."""
    source = Source()
    say(connection, write_by_address(memory.address, PAGE, source.address))
    done = wire.read_status(connection) == wire.OK
    if done:
        memory.model[:PAGE] = source.data
    memory.check()
    return done


def test_an_engine_copies_from_who_has_permitted_it_until_that_is_revoked(host_world: World) -> None:
    world = host_world
    with still_well(world), contextlib.closing(Permit()) as permit, greeted(world.engine.name, permit) as greeting:
        connection, answer = greeting
        assert answer.flags == COPIES
        assert copied(connection, world.scratch)
        assert serves(connection, world.near)
        permit.revoke()
        assert not copied(connection, world.scratch)


@pytest.mark.parametrize("greets", (True, False))
def test_an_engine_copies_nothing_without_a_permit(host_world: World, greets: bool) -> None:
    world = host_world
    with still_well(world), contextlib.ExitStack() as stack:
        if greets:
            connection, answer = stack.enter_context(greeted(world.engine.name))
            assert answer.flags == 0
        else:
            connection = stack.enter_context(connect_on_host(world.engine.name))
        assert not copied(connection, world.scratch)


def unsealed() -> list[int]:
    return [Permit(seals=0).file]


def short() -> list[int]:
    return [Permit(size=PAGE // 2).file]


def long() -> list[int]:
    return [Permit(size=2 * PAGE).file]


def pipe() -> list[int]:
    return list(os.pipe())


def null() -> list[int]:
    return [os.open(os.devnull, os.O_RDWR)]


def read_only() -> list[int]:
    permit = Permit()
    return [os.open(f"/proc/self/fd/{permit.file}", os.O_RDONLY), permit.file]


def none() -> list[int]:
    return []


def many_wrong() -> list[int]:
    return [os.open(os.devnull, os.O_RDWR) for _ in range(200)]


BAD_FILES = (unsealed, short, long, pipe, null, read_only, none, many_wrong)


@pytest.mark.parametrize("make", BAD_FILES, ids=[make.__name__ for make in BAD_FILES])
def test_a_permit_that_is_none_is_not_accepted_and_the_connection_is_served_without_copies(
    host_world: World, make: Callable[[], list[int]]
) -> None:
    world = host_world
    with still_well(world), contextlib.ExitStack() as stack:
        files = make()
        for file in files:
            stack.callback(os.close, file)
        permit = stack.enter_context(contextlib.closing(Permit()))
        connection = stack.enter_context(connect_on_host(world.engine.name))
        say(connection, Hello(identity(world.engine.name), permit_at=permit.address).encode(), files)
        answer = read_answer(connection)
        assert answer is not None and (answer.code, answer.flags) == (wire.OK, 0)
        assert serves(connection, world.near)
        assert not copied(connection, world.scratch)


@pytest.mark.parametrize("place", (0, 8, 1 << 46, (1 << 64) - PAGE), ids=hex)
def test_a_permit_that_is_not_where_the_hello_says_is_not_accepted(host_world: World, place: int) -> None:
    """It may be that of another process, which has handed its file descriptor on."""
    world = host_world
    with still_well(world), contextlib.closing(Permit()) as permit, connect_on_host(world.engine.name) as connection:
        say(connection, Hello(identity(world.engine.name), permit_at=place).encode(), [permit.file])
        answer = read_answer(connection)
        assert answer is not None and (answer.code, answer.flags) == (wire.OK, 0)
        assert not copied(connection, world.scratch)


def test_more_file_descriptors_than_one_are_not_kept(host_world: World) -> None:
    """With the hello, in parts of it, and with what comes later."""
    world = host_world
    with still_well(world), contextlib.closing(Permit()) as permit, connect_on_host(world.engine.name) as connection:
        said = Hello(identity(world.engine.name), permit_at=permit.address).encode()
        for part in (said[:10], said[10:30], said[30:]):
            say(connection, part, [permit.file] * 100)
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        say(connection, wire.header(READ | V2, world.near.address, PAGE), [permit.file] * 100)
        assert wire.read_status(connection) == wire.OK
        assert wire.receive(connection, PAGE) == world.near.model[:PAGE]
