"""The rounds of a case of `kvferry bench`.

1. Before a round the memory of this side is filled: for a WRITE with what is to be written, for a READ with zeros.
2. Each thread moves its share once, batch after batch. This alone is timed.
3. After the round every byte is compared. What was written is read back first.
"""

from __future__ import annotations

import random
import resource
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
from kvferry._command.bench_target import Target
from kvferry._command.declaration import CommandError
from kvferry._command.pattern import wipe
from kvferry._engine import Engine
from kvferry._ffi import U64Array, u64_array
from kvferry._places import Placed, size_text

FOOTPRINT = 64 << 20  # bytes that a case moves in a round, where the peer has as much and a batch of each thread fits
MOST_BATCHES = 1024  # of a thread in a round
MOST_BLOCKS = 1 << 16  # of all threads in a round, where a batch of each thread has no more
SHOWN = 0.2  # seconds between two changes of the live line
STEP = 7919  # positions between the patterns of two rounds of WRITEs

OPCODES = {"read": OPCODE_READ, "write": OPCODE_WRITE}


class Case(NamedTuple):
    """What is measured."""

    op: str  # read or write
    size: int  # bytes of a block
    batch: int  # blocks
    threads: int

    @property
    def least(self) -> int:
        """Bytes that all threads move at a time: a batch each."""
        return self.size * self.batch * self.threads

    def batches(self, room: int) -> int:
        """Batches of a thread in a round, where there is room for so many bytes."""
        blocks = MOST_BLOCKS // (self.batch * self.threads)
        return max(1, min(MOST_BATCHES, blocks, min(room, FOOTPRINT) // self.least))

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.op} {size_text(self.size)} x {self.batch}{threads}"


def require_room(case: Case, target: Target) -> None:
    """CommandError where a batch of each thread does not fit the target."""
    if case.least > target.size:
        needed, offered = size_text(case.least), size_text(target.size)
        raise CommandError(
            f"{case} takes {needed} at a time, and the peer offers {offered}: choose less, or a larger --size of"
            " kvferry serve"
        )


class Measured:
    """What was found out about a case."""

    def __init__(self) -> None:
        self.bytes = 0
        self.seconds = 0.0  # of the transfers
        self.processor = 0.0  # seconds that this process has used meanwhile
        self.durations = array("d")  # of the batches, in seconds
        self.checked = True  # every byte was compared, and was right

    @property
    def rate(self) -> float:
        """Bytes in a second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """The duration of a batch that this share of them does not exceed, in seconds."""
        ordered = sorted(self.durations)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Batch(NamedTuple):
    """The ranges of a batch."""

    local: U64Array
    remote: U64Array
    lengths: U64Array


class Share:
    """What one thread moves in a round: a range of the target, whose blocks are scattered over a range of this side."""

    def __init__(self, case: Case, first: int, batches: int, memory: Placed, target: Target) -> None:
        """first is the number of its first block."""
        count = batches * case.batch
        slots = list(range(first, first + count))
        random.Random(first).shuffle(slots)
        self.blocks = [(slot * case.size, (first + i) * case.size) for i, slot in enumerate(slots)]  # here, there
        lengths = u64_array([case.size] * case.batch, "lengths")
        self.batches = [
            Batch(
                u64_array([memory.address + here for here, _ in part], "local"),
                u64_array([target.address + there for _, there in part], "remote"),
                lengths,
            )
            for part in (self.blocks[i : i + case.batch] for i in range(0, count, case.batch))
        ]


class Rounds:
    """The rounds of a case. One thread at a time uses it."""

    def __init__(self, engine: Engine, memory: Placed, target: Target, case: Case) -> None:
        """memory has room for the footprint, or for a batch of each thread where that is more; the target has room for
        the latter."""
        self.case = case
        self.measured = Measured()
        self._engine, self._memory, self._target = engine, memory, target
        batches = case.batches(target.size)
        count = batches * case.batch
        self._shares = [Share(case, first, batches, memory, target) for first in range(0, case.threads * count, count)]
        self._bytes = case.threads * count * case.size
        self._moved = [0] * case.threads  # bytes of this round, by thread
        self._pool = ThreadPoolExecutor(case.threads)
        self._stopped = False
        self._limit = engine.timeout()
        self._shift = 0  # of the positions of what was written last

    def close(self) -> None:
        """End the threads. Transfers that are under way are waited for."""
        self._stopped = True
        self._pool.shutdown()

    def prepare(self) -> None:
        """Have connections and memory ready, and the pattern at the target where that is not there any more."""
        if self.case.op == "read" and self._target.may_write and self._target.known < self._bytes:
            self._fill(0)
            self._move(OPCODE_WRITE)
            self._target.known = self._bytes
        self.measured.checked = self._target.known >= self._bytes or self.case.op == "write"
        wipe(self._memory, 0, self._bytes)
        self._move(OPCODE_READ)

    def run(self) -> Iterator[None]:
        """One round. It yields while the transfers run, every SHOWN seconds."""
        if self.case.op == "write":
            self._shift += STEP
            self._target.known = 0
            self._fill(self._shift)
        else:
            wipe(self._memory, 0, self._bytes)
        before = _processor()
        futures = self._start(OPCODES[self.case.op])
        while wait(futures, SHOWN).not_done:
            yield
        spans = [future.result() for future in futures]
        self.measured.processor += _processor() - before
        self.measured.seconds += max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
        self.measured.bytes += self._bytes
        for _, _, durations in spans:
            self.measured.durations.extend(durations)
        self._check()

    def progress(self) -> int:
        """Bytes that this round has moved."""
        return sum(self._moved)

    def _check(self) -> None:
        """Compare every byte of the round."""
        if self.case.op == "write":
            wipe(self._memory, 0, self._bytes)
            self._move(OPCODE_READ)
        if not self.measured.checked:
            return
        for share in self._shares:
            for here, there in share.blocks:
                position = self._target.position + there + self._shift
                wrong = self._target.pattern.differs(self._memory, here, self.case.size, position)
                if wrong is not None:
                    self.measured.checked = False
                    raise CommandError(
                        f"{self.case}: byte {wrong - here} of the block at offset {there} of the peer's memory is wrong"
                    )

    def _fill(self, shift: int) -> None:
        for share in self._shares:
            for here, there in share.blocks:
                self._target.pattern.fill(self._memory, here, self.case.size, self._target.position + there + shift)

    def _move(self, opcode: int) -> None:
        for future in self._start(opcode):
            future.result()

    def _start(self, opcode: int) -> list[Future[tuple[float, float, array[float]]]]:
        self._moved = [0] * self.case.threads
        return [self._pool.submit(self._work, number, opcode) for number in range(self.case.threads)]

    def _work(self, number: int, opcode: int) -> tuple[float, float, array[float]]:
        """Move a thread's share: when that began and ended, and how long each batch took."""
        durations = array("d")
        count, size = self.case.batch, self.case.batch * self.case.size
        limit = self._limit + size / (1 << 28)  # a peer may be as slow as 256 MiB/s
        began = before = time.perf_counter()
        for batch in self._shares[number].batches:
            if self._stopped:
                break
            local, remote, lengths = batch.local.address, batch.remote.address, batch.lengths.address
            code = self._engine.transfer(opcode, self._target.segment, local, remote, lengths, count, None, limit)
            if code != 0:
                self._stopped = True
                raise CommandError(f"{self.case} failed: {self._engine.last_error()}")
            after = time.perf_counter()
            durations.append(after - before)
            before = after
            self._moved[number] += size
        return began, before, durations


def _processor() -> float:
    """Processor seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
