"""What is moved. Shared by the processes at both ends and by the one that asks them, so it needs nothing but Python."""

from __future__ import annotations

import random
from typing import NamedTuple

from comparison.changes import BYTES, CHANGES, Change, ranges

KIB, MIB = 1 << 10, 1 << 20

MANY = 16  # processors from which on a machine is taken for a large one: it has other cases


class Case(NamedTuple):
    """Blocks that one call moves, from or to the memory of one peer."""

    operation: str  # "write" or "read", as the initiator does it
    block: int  # bytes
    blocks: int  # of one call
    threads: int = 1  # that call at the same time, each with blocks of its own
    scattered: bool = True  # every other block, on the target in another order; else neighbours
    change: str = ""  # of layout, by its name in CHANGES: the blocks are its runs, and lie where it says
    planned: bool = False  # a change of layout as one transfer of kvferry's, and not as a list of blocks

    @property
    def caches(self) -> Change:
        """The change of layout, of as many bytes as the case moves."""
        return CHANGES[self.change]._replace(bytes=self.block * self.blocks)

    @property
    def stride(self) -> int:
        """Bytes from one block to the next one in memory."""
        return 2 * self.block if self.scattered else self.block

    @property
    def span(self) -> int:
        """Bytes of the memory that the blocks of one thread lie in."""
        if self.change:
            return self.caches.span
        return self.stride * self.blocks

    def offsets(self, side: str, thread: int) -> list[int]:
        """Where the blocks of a thread lie on the "initiator" or the "target", in the order of the transfer."""
        if self.change:
            return ranges(self.caches)[side == self.sink]
        places = list(range(self.blocks))
        if self.scattered and side == "target":
            random.Random(self.blocks).shuffle(places)
        return [thread * self.span + self.stride * place for place in places]

    @property
    def sink(self) -> str:
        """The side to which bytes move."""
        return "target" if self.operation == "write" else "initiator"

    def __str__(self) -> str:
        parts = [f"{self.operation.upper()} {size_text(self.block)} x {self.blocks}"]
        if not self.scattered:
            parts.append("adjacent")
        if self.change:
            parts.append(self.change)
        if self.threads > 1:
            parts.append(f"{self.threads} threads")
        return ", ".join(parts)


def changing(operation: str, change: str, size: int = BYTES) -> Case:
    """A change of layout of so many bytes."""
    run = CHANGES[change].run
    return Case(operation, run, size // run, change=change)


def planned(case: Case) -> Case:
    """The same change of layout as a plan."""
    return case._replace(planned=True)


def plain(case: Case) -> Case:
    """As many bytes in scattered blocks of 64 KiB."""
    return Case(case.operation, 64 * KIB, case.block * case.blocks // (64 * KIB))


def size_text(size: int) -> str:
    if size >= MIB:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size >= KIB else f"{size} bytes"


def percentile(times: list[float], part: float) -> float:
    """Microseconds within which that part of the times, in seconds, lies; 0 of none."""
    ordered = sorted(times)
    return round(ordered[int(part * (len(ordered) - 1))] * 1e6, 2) if ordered else 0.0
