"""Plots as SVG: throughput over block size, or whatever else grows with something on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Union
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 30, 50  # margins; the legend is in the right one
FONT = 'font-family="sans-serif" font-size="12"'
COLORS = ("#4a4a4a", "#0b6fb8", "#d1495b", "#2e8b57", "#e08e0b", "#7d5ba6")

Series = Union[Mapping[float, float], Mapping[int, float]]  # such as GB/s by block size
Ticks = Sequence[tuple[float, str]]  # places on an axis that have a text


def svg(
    title: str,
    lines: Mapping[str, Series],
    ticks: Ticks,
    across: str = "block size",
    upwards: str = "GB/s",
    logarithmic: bool = False,
) -> str:
    """Lines by their names, and the names of the axes. ticks are those of the axis across, which is logarithmic. The
    other one begins at 0, or is logarithmic, too."""
    values = [value for series in lines.values() for value in series.values()]
    scale = _Logarithmic(min(values), max(values)) if logarithmic else _Linear(max(values))
    axes = _Axes(min(size for size, _ in ticks), max(size for size, _ in ticks), scale)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
        *axes.draw(ticks, across, upwards),
    ]
    for number, (name, series) in enumerate(lines.items()):
        parts += _line(axes, name, series, COLORS[number % len(COLORS)], number)
    return "\n".join([*parts, "</svg>", ""])


class _Linear:
    """From 0 to a round number."""

    def __init__(self, largest: float) -> None:
        self._top = _round_up(largest)

    def part(self, value: float) -> float:
        """How far up a value is, from 0 to 1."""
        return value / self._top

    def ticks(self) -> Ticks:
        return [(self._top * step / 5, f"{self._top * step / 5:g}") for step in range(6)]


class _Logarithmic:
    """From a power of ten to another one."""

    def __init__(self, smallest: float, largest: float) -> None:
        self._low = math.floor(math.log10(smallest))
        self._high = max(math.ceil(math.log10(largest)), self._low + 1)

    def part(self, value: float) -> float:
        """How far up a value is, from 0 to 1."""
        return (math.log10(value) - self._low) / (self._high - self._low)

    def ticks(self) -> Ticks:
        return [(10.0**power, f"{10.0**power:g}") for power in range(self._low, self._high + 1)]


class _Axes:
    """From values to places in the picture. A single size is in the middle."""

    def __init__(self, smallest: float, largest: float, scale: _Linear | _Logarithmic) -> None:
        self._low, self._range = math.log2(smallest), math.log2(largest) - math.log2(smallest)
        self._scale = scale

    def x(self, size: float) -> float:
        part = (math.log2(size) - self._low) / self._range if self._range else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self._scale.part(value) * (HEIGHT - TOP - BOTTOM)

    def draw(self, ticks: Ticks, across: str, upwards: str) -> list[str]:
        lines = []
        for value, text in self._scale.ticks():
            y = self.y(value)
            lines += [
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>',
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>',
            ]
        for size, text in ticks:
            place = f'x="{self.x(size):.1f}" y="{HEIGHT - BOTTOM + 18}"'
            lines.append(f'<text {place} text-anchor="middle">{escape(text)}</text>')
        x, y = (LEFT + WIDTH - RIGHT) / 2, HEIGHT / 2
        lines.append(f'<text x="{x}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>')
        turned = f'transform="translate(16 {y}) rotate(-90)"'
        lines.append(f'<text {turned} text-anchor="middle">{escape(upwards)}</text>')
        return lines


def _line(axes: _Axes, name: str, series: Series, color: str, number: int) -> list[str]:
    """A line, with its entry in the legend."""
    points = [(axes.x(size), axes.y(rate)) for size, rate in sorted(series.items())]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    left, y = WIDTH - RIGHT + 12, TOP + 12 + 20 * number
    return [
        f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points),
        f'<line x1="{left}" x2="{left + 20}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>',
        f'<text x="{left + 26}" y="{y + 4}">{escape(name)}</text>',
    ]


def _round_up(value: float) -> float:
    """The next of 1, 2 or 5 times a power of ten, whose fifths are short numbers; 1 for 0."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value)
