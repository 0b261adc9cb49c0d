"""The bytes that memory is filled with: the same for the same seed in every process and Python version."""

from __future__ import annotations

import random

BLOCK = 4096  # bytes; what memory is digested by where two sides are found to differ


def pattern(seed: int, length: int) -> bytes:
    """Return `length` bytes in which no part repeats another, so that a byte at a wrong place shows."""
    return random.Random(seed).randbytes(length)
