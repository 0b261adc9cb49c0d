"""As many peers as an engine is meant to serve, each with an address of its own on this host."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from support import hello, wire
from support.memory import Memory
from support.peers import Peers, unavailable

SIZE = 64  # bytes that each connection reads
ENOUGH = 16 * 1024  # open files with which an engine serves as many connections as the setting says


@pytest.fixture
def target(start_peer: Peers) -> Memory:
    """An engine with default settings, to which this process may make a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < ENOUGH:
        unavailable(f"this needs a limit of {ENOUGH} open files, and it is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, ENOUGH), hard))
    return start_peer().create("127.0.0.1").memory(4096, 1)


@contextlib.contextmanager
def connected(target: Memory, peers: int, lanes: int) -> Iterator[list[socket.socket]]:
    """Connect as so many kvferry engines with so many lanes each."""
    address = wire.data_address(target.peer.name)
    identity = hello.identity(target.peer.name)
    with contextlib.ExitStack() as stack:
        connections = []
        for peer in range(peers):
            origin = peer.to_bytes(16, "little")
            for number in range(1, lanes + 1):
                source = (f"127.1.{peer >> 8}.{peer & 0xFF}", 0)
                connection = stack.enter_context(socket.create_connection(address, wire.LIMIT, source))
                connection.sendall(hello.Hello(identity, number, origin=origin).encode())
                answer = hello.read_answer(connection)
                assert answer is not None and answer.code == wire.OK
                connections.append(connection)
        yield connections


@pytest.mark.parametrize("peers,lanes", [(128, 8), (1000, 1)])
def test_all_connections_of_many_peers_are_served_again_and_again(target: Memory, peers: int, lanes: int) -> None:
    """All are up at once, and none of them gives way to another."""
    with connected(target, peers, lanes) as connections:
        for _ in range(3):
            for connection in connections:
                connection.sendall(wire.header(wire.READ | wire.V2, target.address, SIZE))
            for connection in connections:
                assert wire.read_status(connection) == wire.OK
                assert wire.receive(connection, SIZE) == target.model[:SIZE]
    assert "all sessions are in use" not in target.peer.log()
