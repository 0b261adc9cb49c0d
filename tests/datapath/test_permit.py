"""Permits, by which a target copies from a process on its host: without a good one it copies nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable

import pytest

from support import wire
from support.hello import (
    COPIES,
    PAGE,
    STRIDED,
    Hello,
    Permit,
    connect_on_host,
    greeted,
    identity,
    read_answer,
    say,
    serves,
    write_by_address,
)
from support.memory import Memory
from support.wire import READ, V2
from support.world import World, still_well


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


def test_an_engine_copies_from_who_has_permitted_it_until_that_is_revoked(world: World) -> None:
    with still_well(world), contextlib.closing(Permit()) as permit, greeted(world.engine.name, permit) as greeting:
        connection, answer = greeting
        assert answer.flags == COPIES | STRIDED
        assert copied(connection, world.scratch)
        assert serves(connection, world.near)
        permit.revoke()
        assert not copied(connection, world.scratch)


@pytest.mark.parametrize("greets", (True, False))
def test_an_engine_copies_nothing_without_a_permit(world: World, greets: bool) -> None:
    with still_well(world), contextlib.ExitStack() as stack:
        if greets:
            connection, answer = stack.enter_context(greeted(world.engine.name))
            assert answer.flags == STRIDED
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
    world: World, make: Callable[[], list[int]]
) -> None:
    with still_well(world), contextlib.ExitStack() as stack:
        files = make()
        for file in files:
            stack.callback(os.close, file)
        permit = stack.enter_context(contextlib.closing(Permit()))
        connection = stack.enter_context(connect_on_host(world.engine.name))
        say(connection, Hello(identity(world.engine.name), permit_at=permit.address).encode(), files)
        answer = read_answer(connection)
        assert answer is not None and (answer.code, answer.flags) == (wire.OK, STRIDED)
        assert serves(connection, world.near)
        assert not copied(connection, world.scratch)


@pytest.mark.parametrize("place", (0, 8, 1 << 46, (1 << 64) - PAGE), ids=hex)
def test_a_permit_that_is_not_where_the_hello_says_is_not_accepted(world: World, place: int) -> None:
    """It may be that of another process, which has handed its file descriptor on."""
    with still_well(world), contextlib.closing(Permit()) as permit, connect_on_host(world.engine.name) as connection:
        say(connection, Hello(identity(world.engine.name), permit_at=place).encode(), [permit.file])
        answer = read_answer(connection)
        assert answer is not None and (answer.code, answer.flags) == (wire.OK, STRIDED)
        assert not copied(connection, world.scratch)


def test_more_file_descriptors_than_one_are_not_kept(world: World) -> None:
    """With the hello, in parts of it, and with what comes later."""
    with still_well(world), contextlib.closing(Permit()) as permit, connect_on_host(world.engine.name) as connection:
        said = Hello(identity(world.engine.name), permit_at=permit.address).encode()
        for part in (said[:10], said[10:30], said[30:]):
            say(connection, part, [permit.file] * 100)
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        say(connection, wire.header(READ | V2, world.near.address, PAGE), [permit.file] * 100)
        assert wire.read_status(connection) == wire.OK
        assert wire.receive(connection, PAGE) == world.near.model[:PAGE]
