"""Numbers with units, for people."""

from __future__ import annotations


def memory_text(count: int) -> str:
    """A number of bytes in one unit, with a digit after the point."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.1f} {unit}" if unit != "B" else f"{count} B"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(value: float | None) -> str:
    """Seconds, in a unit that fits."""
    if value is None:
        return "-"
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if value >= length:
            return f"{value / length:.3g}{unit}"
    return f"{value / 1e-6:.3g}us"


def age(value: float) -> str:
    """How long something has been there, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if value >= 2 * length:
            return f"{int(value // length)}{unit}"
    return f"{int(value)}s"
