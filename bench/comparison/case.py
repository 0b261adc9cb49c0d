"""What is moved. Shared by the processes at both ends and by the one that asks them, so it needs nothing but Python."""

from __future__ import annotations

import random
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
MANY = 16  # processors from which on a machine is taken for a large one: it has other cases


class Case(NamedTuple):
    """Blocks that one call moves, from or to the memory of one peer."""

    operation: str  # "write" or "read", as the initiator does it
    block: int  # bytes
    blocks: int  # of one call
    threads: int = 1  # that call at the same time, each with blocks of its own
    scattered: bool = True  # every other block, on the target in another order; else neighbours

    @property
    def stride(self) -> int:
        """Bytes from one block to the next one in memory."""
        return 2 * self.block if self.scattered else self.block

    @property
    def span(self) -> int:
        """Bytes of the memory that the blocks of one thread lie in."""
        return self.stride * self.blocks

    def offsets(self, side: str, thread: int) -> list[int]:
        """Where the blocks of a thread lie on the "initiator" or the "target", in the order of the transfer."""
        places = list(range(self.blocks))
        if self.scattered and side == "target":
            random.Random(self.blocks).shuffle(places)
        return [thread * self.span + self.stride * place for place in places]

    def __str__(self) -> str:
        parts = [f"{self.operation.upper()} {size_text(self.block)} x {self.blocks}"]
        if not self.scattered:
            parts.append("adjacent")
        if self.threads > 1:
            parts.append(f"{self.threads} threads")
        return ", ".join(parts)


def size_text(size: int) -> str:
    if size >= MIB:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size >= KIB else f"{size} bytes"


def percentile(times: list[float], part: float) -> float:
    """Microseconds within which that part of the times, in seconds, lies; 0 of none."""
    ordered = sorted(times)
    return round(ordered[int(part * (len(ordered) - 1))] * 1e6, 2) if ordered else 0.0
