"""Values of the command's options."""

from __future__ import annotations

_SCALES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def positive(text: str) -> int:
    """A number from 1 to 2^63-1, perhaps with K, M or G after it; else ValueError, as argparse wants it."""
    scale = _SCALES.get(text[-1:].upper(), 1)
    number = int(text[:-1] if scale > 1 else text) * scale
    if not 1 <= number < 1 << 63:
        raise ValueError(text)
    return number


def seconds(text: str) -> float:
    """A time above 0 and of at most a year, in seconds; else ValueError."""
    number = float(text)
    if not 0 < number <= 365 * 24 * 3600:
        raise ValueError(text)
    return number
