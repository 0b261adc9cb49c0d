"""What was reported as failed or given up is over: its memory is the caller's again, on either side."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from support import devices, rawpeer, wire
from support.memory import Memory
from support.peer import Peer
from support.peers import Peers
from support.rawpeer import BASE, RawTarget
from support.world import GIVEN_UP, HUNG, PATIENT, QUICK

LENGTH = 8 << 20  # bytes: more than sockets hold
EARLY = 100_000  # bytes that move before the target stops

WAYS = ("sync", "batch", "async")


class Sleeper:
    """A data port that stops in the middle of the first payload and goes on with it when it is woken."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.woken = threading.Event()
        self.finished = threading.Event()
        self.received = bytearray()  # of WRITEs, headers and payloads

    def __call__(self, target: RawTarget, connection: socket.socket) -> None:
        try:
            header = wire.receive(connection, wire.HEADER.size)
            if len(header) < wire.HEADER.size:
                return
            size, _, opcode = wire.HEADER.unpack(header)
            self.received += header
            self._serve(connection, opcode, size)
        finally:
            self.finished.set()

    def _serve(self, connection: socket.socket, opcode: int, size: int) -> None:
        writes = opcode & ~wire.V2 == wire.WRITE
        if writes:
            self.received += wire.receive(connection, EARLY)
        else:
            status = wire.status_frame(wire.OK) if opcode & wire.V2 else b""
            connection.sendall(status + b"\xee" * EARLY)
        self.stopped.set()
        self.woken.wait(rawpeer.STALL_LIMIT)
        if writes:
            while part := connection.recv(1 << 20):
                self.received += part
        else:
            connection.sendall(b"\xee" * (size - EARLY))

    def written(self) -> list[tuple[int, bytes]]:
        """Return what arrived of each WRITE: the offset in the target's memory, and the bytes."""
        stream = bytes(self.received)
        found = []
        while len(stream) >= wire.HEADER.size:
            size, address, _ = wire.HEADER.unpack_from(stream)
            end = wire.HEADER.size + size
            found.append((address - BASE, stream[wire.HEADER.size : end]))
            stream = stream[end:]
        return found

    def check_written(self, model: bytes) -> None:
        """Check that no WRITE carried anything but the bytes of its place in the model."""
        for offset, data in self.written():
            assert model[offset : offset + len(data)] == data, "the peer received bytes of the buffer's next use"


@pytest.fixture
def engine(start_peer: Peers, memory: str) -> Peer:
    # Nothing ends the transfers but the caller's own limit of 5 s.
    patient = {**PATIENT, "MC_TRANSFER_TIMEOUT": QUICK["MC_TRANSFER_TIMEOUT"], "MC_TCP_LANES_PER_PEER": "1"}
    return start_peer(**patient, **devices.needed(memory)).create()


versions = pytest.mark.parametrize("version", (1, 2), ids=("v1", "v2"))


@versions
def test_late_bytes_of_a_read_do_not_arrive_after_the_call_returned(engine: Peer, memory: str, version: int) -> None:
    with given_up(engine, memory, "read", version) as cases:
        for buffer, sleeper in cases:
            buffer.fill(2)
            wake(sleeper)
            buffer.check()


@versions
def test_bytes_of_a_buffer_that_a_given_up_write_returned_are_not_sent(engine: Peer, memory: str, version: int) -> None:
    with given_up(engine, memory, "write", version) as cases:
        for buffer, sleeper in cases:
            before = bytes(buffer.model)
            buffer.fill(2)
            wake(sleeper)
            assert len(sleeper.received) < LENGTH, "a WRITE that was given up went on"
            sleeper.check_written(before)


@contextlib.contextmanager
def given_up(engine: Peer, place: str, opcode: str, version: int) -> Iterator[list[tuple[Memory, Sleeper]]]:
    """Transfer with a sleeper in each of WAYS at the same time, until all calls have given up."""
    with contextlib.ExitStack() as stack:
        cases, pending = [], []
        for how in WAYS:
            buffer, sleeper = engine.memory(LENGTH, 1, place=place), Sleeper()
            target = stack.enter_context(RawTarget(sleeper, proto=version))
            cases.append((buffer, sleeper))
            pending.append(engine.start_move(target.name, opcode, [[buffer.address, BASE, LENGTH]], how))
        for result in [p.result(HUNG) for p in pending]:
            assert result["code"] < 0
            assert result["seconds"] < GIVEN_UP
        yield cases


def wake(sleeper: Sleeper) -> None:
    """Let the target go on and wait until it has sent, or read, all that there is."""
    assert sleeper.stopped.is_set(), "the transfer never reached the payload"
    sleeper.woken.set()
    assert sleeper.finished.wait(30), "the connection of a transfer that was given up is not closed"


@versions
@pytest.mark.parametrize("opcode", ("read", "write"))
def test_a_local_region_in_use_can_be_unregistered_and_is_not_touched_afterwards(
    engine: Peer, memory: str, opcode: str, version: int
) -> None:
    buffer = engine.memory(LENGTH, 1, place=memory)
    before = bytes(buffer.model)
    sleeper = Sleeper()
    with RawTarget(sleeper, proto=version) as target:
        moving = engine.start_move(target.name, opcode, [[buffer.address, BASE, LENGTH]], "batch")
        assert sleeper.stopped.wait(30)
        assert engine.call("unregister_memory", buffer.address, limit=GIVEN_UP) == 0
        buffer.fill(2)
        wake(sleeper)
        buffer.check()
        assert moving.result()["code"] < 0
    sleeper.check_written(before)


def test_a_transfer_over_its_slice_timeout_reports_that(start_peer: Peers) -> None:
    engine = start_peer(**QUICK, MC_SLICE_TIMEOUT="1").create()
    memory = engine.memory(LENGTH, 1)
    with RawTarget(rawpeer.stall) as target:
        moved = engine.move(target.name, "write", [[memory.address, BASE, LENGTH]], "submit")
    assert moved["code"] == -2


def test_without_a_slice_timeout_no_transfer_reports_one(start_peer: Peers) -> None:
    engine = start_peer(**QUICK).create()
    memory = engine.memory(LENGTH, 1)
    with RawTarget(rawpeer.stall) as target:
        moved = engine.move(target.name, "write", [[memory.address, BASE, LENGTH]], "submit")
    assert moved["code"] == -1


@pytest.mark.parametrize("opcode", ("read", "write"))
def test_an_engine_with_a_stuck_peer_ends_with_its_process(start_peer: Peers, memory: str, opcode: str) -> None:
    engine = start_peer(**devices.needed(memory)).create()
    buffer = engine.memory(LENGTH, 1, place=memory)
    sleeper = Sleeper()
    with RawTarget(sleeper) as target:
        engine.start_move(target.name, opcode, [[buffer.address, BASE, LENGTH]], "batch")
        assert sleeper.stopped.wait(30)
        assert engine.close() == 0
