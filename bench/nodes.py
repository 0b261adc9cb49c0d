"""The processes of a benchmark: each has an engine and one registered memory, and does what it is asked over a pipe.

Transfers are submitted in batches, as arrays, with several batches in flight; Python is entered twice for each batch.
"""

from __future__ import annotations

import collections
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, NamedTuple

import link
from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
from kvferry._engine import Engine
from kvferry._ffi import U64Array, u64_array
from kvferry._places import HostMemory
from kvferry.npu import AscendCL, Memory, PinnedMemory

OPCODES = {"write": OPCODE_WRITE, "read": OPCODE_READ}
ANSWER_TIME = 120.0  # seconds until a process that does not answer is given up
TRANSFER_TIME = 60.0  # seconds until a batch is given up
STEP = 1 << 20  # bytes that memory is filled with at once


class Work(NamedTuple):
    """What one case moves, again and again."""

    operation: str  # "write" or "read", as the initiator does it
    block: int  # bytes
    blocks: int  # in all
    per_batch: int
    batches_in_flight: int
    stride: int  # bytes from one block to the next one in memory; more than block leaves gaps

    @property
    def span(self) -> int:
        """Bytes of the memory that the blocks lie in."""
        return self.stride * self.blocks

    def offsets(self, side: str) -> list[int]:
        """Where the blocks lie, in the order of the transfer: one after the other, but shuffled on the target."""
        places = list(range(self.blocks))
        if side == "target":
            random.Random(self.block).shuffle(places)
        return [self.stride * place for place in places]


class Measured(NamedTuple):
    """One run of a case."""

    seconds: float
    bytes: int
    cpu: float  # seconds of processor time: as a node has it, its own; as a case has it, those of both sides

    @property
    def rate(self) -> float:
        """GB/s, of 10^9 bytes."""
        return self.bytes / self.seconds / 1e9


class Place(NamedTuple):
    """Where a node's memory is, for its peers."""

    name: str
    address: int


class _Batch(NamedTuple):
    local: U64Array
    remote: U64Array
    lengths: U64Array
    bytes: int


class _Served:
    """What a node's process does; each public method is a request."""

    def __init__(self, place: str, size: int, host: str) -> None:
        """Memory of so many bytes in a place: "host" or "npu:0"."""
        self._size = size
        self._acl = None if place == "host" else AscendCL()
        self._memory = HostMemory(size) if self._acl is None else self._acl.allocate(size, int(place.split(":")[1]))
        self._pinned: PinnedMemory | None = None
        self._engine = Engine(host, "P2PHANDSHAKE", "tcp", [self._memory])
        self._register(self._memory.address, size, self._memory.location)
        self._segment, self._peer = -1, Place("", 0)
        self._batches: list[_Batch] = []
        self.fill()

    def _register(self, address: int, size: int, location: str) -> None:
        if self._engine.register(address, size, location) != 0:
            raise RuntimeError(f"{size} bytes at {location} cannot be registered: {self._engine.last_error()}")

    def place(self) -> Place:
        return Place(self._engine.name(), self._memory.address)

    # Bytes

    def fill(self) -> None:
        """Fill the memory with random bytes; every step of it with others."""
        data = os.urandom(STEP)
        for start in range(0, self._size, STEP):
            turn = start // STEP * 4099 % STEP
            self._memory.write((data[turn:] + data[:turn])[: self._size - start], start)

    def digest(self, side: str, work: Work) -> bytes:
        """The digest of the blocks of a case in the order of the transfer."""
        digest = hashlib.sha256()
        memory = memoryview(self._memory.read(work.span))
        for offset in work.offsets(side):
            digest.update(memory[offset : offset + work.block])
        return digest.digest()

    # Transfers

    def connect(self, peer: Place) -> None:
        """Open a target's memory; it is the one that is written to, and read from, from then on."""
        self._peer = peer
        self._segment = self._engine.segment(peer.name, TRANSFER_TIME)
        if self._segment < 0:
            raise RuntimeError(f"{peer.name} cannot be opened: {self._engine.last_error()}")

    def move_once(self, work: Work) -> None:
        """Move each block of a case once."""
        self._use(work, self._memory.address)
        self._move(work, iter(self._batches))

    def move(self, work: Work, seconds: float) -> Measured:
        """Move the blocks of a case for so long."""
        self._use(work, self._memory.address)
        return self._measure(lambda: self._move(work, self._again_and_again(seconds)))

    def copy_then_move(self, work: Work, seconds: float) -> Measured:
        """The same without the engine's help, for WRITE from an NPU: each batch, whose blocks are neighbours, is copied
        to page-locked host memory by one call, and sent from there."""
        if self._pinned is None:
            assert self._acl is not None
            self._pinned = self._acl.allocate_pinned(self._size)
            self._register(self._pinned.address, self._size, "*")
        pinned = self._pinned
        self._use(work, pinned.address)
        return self._measure(lambda: self._copy_and_move(pinned, seconds))

    def _use(self, work: Work, address: int) -> None:
        """Make the arrays of a case's batches, of blocks that start at this address on this side."""
        blocks = list(zip(work.offsets("initiator"), work.offsets("target")))
        parts = [blocks[start : start + work.per_batch] for start in range(0, work.blocks, work.per_batch)]
        self._batches = [
            _Batch(
                u64_array([address + here for here, _ in part], "local"),
                u64_array([self._peer.address + there for _, there in part], "remote"),
                u64_array([work.block] * len(part), "lengths"),
                work.block * len(part),
            )
            for part in parts
        ]
        self._opcode = OPCODES[work.operation]

    def _again_and_again(self, seconds: float) -> Iterator[_Batch]:
        end = time.perf_counter() + seconds
        while True:
            for batch in self._batches:
                if time.perf_counter() >= end:
                    return
                yield batch

    def _measure(self, run: Callable[[], int]) -> Measured:
        start, before = time.perf_counter(), time.process_time()
        moved = run()
        return Measured(time.perf_counter() - start, moved, time.process_time() - before)

    def _move(self, work: Work, batches: Iterator[_Batch]) -> int:
        """Move batches, some at a time; the bytes."""
        moved, flying = 0, collections.deque[int]()
        for batch in batches:
            if len(flying) == work.batches_in_flight:
                self._wait(flying.popleft())
            flying.append(self._submit(batch))
            moved += batch.bytes
        while flying:
            self._wait(flying.popleft())
        return moved

    def _copy_and_move(self, pinned: PinnedMemory, seconds: float) -> int:
        assert isinstance(self._memory, Memory)
        moved = 0
        for batch in self._again_and_again(seconds):
            first = batch.local.items()[0]
            self._memory.read_to(first, batch.bytes, first - pinned.address)
            self._wait(self._submit(batch))
            moved += batch.bytes
        return moved

    def _submit(self, batch: _Batch) -> int:
        submitted = self._engine.submit(
            self._opcode,
            self._segment,
            batch.local.address,
            batch.remote.address,
            batch.lengths.address,
            batch.local.length,
            TRANSFER_TIME,
        )
        if submitted == 0:
            raise RuntimeError(f"a batch cannot be submitted: {self._engine.last_error()}")
        return submitted

    def _wait(self, batch: int) -> None:
        if self._engine.batches.wait([batch]) != 0:
            raise RuntimeError(f"a batch failed: {self._engine.last_error()}")

    # Resources

    def cpu(self) -> float:
        """Seconds of processor time that this process has used."""
        return time.process_time()

    def peak_memory(self) -> int:
        """The most memory that this process ever had, in bytes: with what stands for a simulated NPU's."""
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10

    # The simulator

    def simulator_cost(self, cost: str) -> None:
        """Have copies cost that from now on; "" is what they cost by default."""
        assert self._acl is not None
        if self._acl.library.kvferry_sim_cost(cost.encode()) != 0:
            raise RuntimeError(f"the simulator does not understand {cost}")

    def simulated_copy(self) -> float:
        """Seconds of processor time that it takes to copy a GB from the simulated NPU to page-locked memory."""
        assert self._acl is not None and isinstance(self._memory, Memory)
        pinned = self._acl.allocate_pinned(STEP)
        before = time.process_time()
        for start in range(0, self._size, STEP):
            self._memory.read_to(pinned.address, STEP, start)
        return (time.process_time() - before) / self._size * 1e9

    def simulator_report(self) -> Any:
        """What the simulator has counted since its process began."""
        assert self._acl is not None
        size = self._acl.library.kvferry_sim_report(None, 0) + 1
        text = ctypes.create_string_buffer(size)
        self._acl.library.kvferry_sim_report(text, ctypes.c_size_t(size))
        return json.loads(text.value)


class NodeError(Exception):
    """A node failed; the text says which, and why."""


class Node:
    """A node's process, as seen from the one that started it. To be closed."""

    def __init__(
        self, name: str, place: str, size: int, host: str, settings: Mapping[str, str], keeper: int | None = None
    ) -> None:
        """Start it: with so many bytes of memory in a place, and those environment variables. keeper is a link's."""
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(there, place, size, host, dict(settings), keeper), name=name, daemon=True
        )
        self._process.start()
        there.close()

    def ask(self, request: str, *arguments: Any) -> Any:
        """What a public method of _Served returns. NodeError when it raises, or the process ends or does not answer."""
        try:
            self._pipe.send((request, arguments))
            if not self._pipe.poll(ANSWER_TIME):
                raise NodeError(f"{self.name}: {request} is not done within {ANSWER_TIME:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError) as e:
            self._process.join(1)
            raise NodeError(f"{self.name} ended at {request}, with exit code {self._process.exitcode}") from e
        if isinstance(answer, NodeError):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, place: str, size: int, host: str, settings: dict[str, str], keeper: int | None) -> None:
    """A node's process: do what is asked until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end gets it too, and ends this process
    os.environ.update(settings)  # before the engine and the simulator read them
    name = multiprocessing.current_process().name
    served: _Served | None = None
    try:
        while True:
            request, arguments = pipe.recv()
            try:
                if served is None:
                    if keeper is not None:
                        link.join(keeper)
                    served = _Served(place, size, host)
                pipe.send(getattr(served, request)(*arguments))
            except Exception as e:  # whatever it is, the other end says it
                pipe.send(NodeError(f"{name}: {request}: {type(e).__name__}: {e}"))
    except (EOFError, OSError):
        pass  # the other end has closed
