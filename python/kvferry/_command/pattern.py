"""Bytes that say where they belong: a block that is in the wrong place, or is an older one, is noticed.

The byte at a position is that of a random sequence whose length is a prime number. So no two blocks of a memory that
lie a power of two apart are the same.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator

from kvferry._memory import Mapping
from kvferry._places import HostMemory, Placed

PERIOD = 1048573  # the largest prime number below 2^20
PIECE = 1 << 20  # bytes that are copied or compared at once

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Pattern:
    """The sequence of a seed. One thread at a time uses it."""

    def __init__(self, seed: int) -> None:
        data = random.Random(seed).randbytes(PERIOD)
        self._sequence = Mapping(PERIOD + PIECE)
        self._sequence.buffer[:] = (3 * data)[: PERIOD + PIECE]  # PIECE bytes follow each position
        self._landing = HostMemory(PIECE)  # for bytes of a device

    def fill(self, memory: Placed, offset: int, length: int, position: int) -> None:
        """Write the bytes of the positions from position on to a range of the memory."""
        for start, size in _pieces(length):
            memory.write_from(self._at(position + start), size, offset + start)

    def differs(self, memory: Placed, offset: int, length: int, position: int) -> int | None:
        """The offset in the memory of the first byte that is not that of its position; None if all of them are."""
        for start, size in _pieces(length):
            found = self._address(memory, offset + start, size)
            expected = self._at(position + start)
            if _memcmp(found, expected, size) != 0:
                pairs = zip(ctypes.string_at(found, size), ctypes.string_at(expected, size))
                return offset + start + next(i for i, (a, b) in enumerate(pairs) if a != b)
        return None

    def _address(self, memory: Placed, offset: int, size: int) -> int:
        """Where the host finds bytes of the memory."""
        if isinstance(memory, HostMemory):
            return memory.address + offset
        memory.read_to(self._landing.address, size, offset)
        return self._landing.address

    def _at(self, position: int) -> int:
        return self._sequence.address + position % PERIOD


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    """The starts and lengths of the pieces of a range."""
    for start in range(0, length, PIECE):
        yield start, min(PIECE, length - start)


def wipe(memory: Placed, offset: int, length: int) -> None:
    """Write zeros to a range of the memory."""
    zeros = HostMemory(PIECE)
    for start, size in _pieces(length):
        memory.write_from(zeros.address, size, offset + start)
