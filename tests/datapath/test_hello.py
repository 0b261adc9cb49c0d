"""What an initiator may say first on a data connection: whatever it is, others are served."""

from __future__ import annotations

import os
import socket

import pytest

from support import hello, wire
from support.hello import PAGE, Connect, Hello, identity, read_answer, say, serves
from support.wire import READ, V2
from support.world import World, still_well

LENGTHS = (0, hello.BODY.size - 1, 4097, 2**32 - 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_hello_of_a_length_that_there_is_not_ends_the_connection(world: World, connect: Connect, length: int) -> None:
    with still_well(world), connect() as connection:
        say(connection, Hello(identity(world.engine.name), length=length).encode())
        assert wire.ended(connection)


@pytest.mark.parametrize("closes", (True, False), ids=("closes", "stays"))
def test_a_hello_that_breaks_off_keeps_nobody_waiting(world: World, connect: Connect, closes: bool) -> None:
    with still_well(world), connect() as connection:
        say(connection, Hello(identity(world.engine.name)).encode()[:50])
        if closes:
            connection.shutdown(socket.SHUT_WR)
        assert wire.ended(connection)


def test_a_hello_without_a_number_ends_the_connection(world: World, connect: Connect) -> None:
    with still_well(world), connect() as connection:
        say(connection, Hello(identity(world.engine.name), number=0).encode())
        assert wire.ended(connection)


def test_a_hello_for_another_engine_is_answered_by_who_is_there_and_nothing_is_served(
    world: World, connect: Connect
) -> None:
    with still_well(world), connect() as connection:
        say(connection, Hello(os.urandom(16)).encode() + wire.header(READ | V2, world.near.address, PAGE))
        answer = read_answer(connection)
        assert answer is not None
        assert (answer.code, answer.target) == (hello.OTHER_ENGINE, identity(world.engine.name))
        assert wire.ended(connection)


def test_a_second_hello_on_a_connection_ends_it(world: World, connect: Connect) -> None:
    with still_well(world), connect() as connection:
        say(connection, Hello(identity(world.engine.name), 1).encode())
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        say(connection, Hello(identity(world.engine.name), 2).encode())
        assert wire.read_status(connection) != wire.OK
        assert not serves(connection, world.near)


def test_a_second_connection_with_a_number_is_refused_and_the_first_one_goes_on(world: World, connect: Connect) -> None:
    first = Hello(identity(world.engine.name))
    with still_well(world), connect() as connection, connect() as second:
        say(connection, first.encode())
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        say(second, first.encode())
        answer = read_answer(second)
        assert answer is not None and answer.code == wire.REJECTED
        assert wire.ended(second)
        assert serves(connection, world.near)


def test_an_initiator_that_others_do_not_know_ends_none_of_their_connections(world: World, connect: Connect) -> None:
    first = Hello(identity(world.engine.name))
    with still_well(world), connect() as connection, connect() as stranger:
        say(connection, first.encode())
        assert read_answer(connection) is not None
        say(stranger, Hello(first.target, number=2, ends=first.number).encode())
        answer = read_answer(stranger)
        assert answer is not None and answer.code == wire.OK
        assert serves(connection, world.near)


def test_a_connection_that_its_initiator_ends_by_another_one_serves_nothing_more(
    world: World, connect: Connect
) -> None:
    first = Hello(identity(world.engine.name))
    with still_well(world), connect() as connection, connect() as second:
        say(connection, first.encode())
        assert read_answer(connection) is not None
        say(second, Hello(first.target, number=2, ends=first.number, origin=first.origin).encode())
        answer = read_answer(second)
        assert answer is not None and answer.code == wire.OK
        assert not serves(connection, world.near)
        assert serves(second, world.near)


def test_a_hello_of_a_later_version_is_served(world: World, connect: Connect) -> None:
    with still_well(world), connect() as connection:
        say(connection, Hello(identity(world.engine.name), version=2, more=bytes(24)).encode())
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        assert serves(connection, world.near)
