"""Ways in which the blocks of a transfer may lie in the memories of its two sides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .memory import Span


def scattered(lengths: Sequence[int], seed: int = 0) -> list[Span]:
    """Lay blocks out in a random order on each side, with gaps of odd lengths between them, from odd offsets on."""
    chance = random.Random(seed)
    near = _offsets(lengths, chance)
    far = _offsets(lengths, chance)
    return [(near[i], far[i], length) for i, length in enumerate(lengths)]


def _offsets(lengths: Sequence[int], chance: random.Random) -> list[int]:
    offsets = [0] * len(lengths)
    position = 1
    for i in chance.sample(range(len(lengths)), len(lengths)):
        offsets[i] = position
        position += lengths[i] + chance.choice((1, 3, 61))
    return offsets


def adjacent(lengths: Sequence[int], near: int = 3, far: int = 5) -> list[Span]:
    """Lay blocks out one after the other on both sides, from offsets `near` and `far` on."""
    spans = []
    for length in lengths:
        spans.append((near, far, length))
        near += length
        far += length
    return spans


def adjacent_near_only(lengths: Sequence[int]) -> list[Span]:
    """Lay blocks out one after the other at the initiator, and in reverse, half of them touching, at the target."""
    near, far = 7, 9
    spans = []
    positions = {}
    for i in reversed(range(len(lengths))):
        positions[i] = far
        far += lengths[i] + i % 2
    for i, length in enumerate(lengths):
        spans.append((near, positions[i], length))
        near += length
    return spans
