"""A plot of throughput over block size, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 30, 50  # margins; the legend is in the right one
FONT = 'font-family="sans-serif" font-size="12"'
COLORS = ("#4a4a4a", "#0b6fb8", "#d1495b", "#2e8b57", "#e08e0b", "#7d5ba6")

Series = Mapping[int, float]  # GB/s by block size


def svg(title: str, lines: Mapping[str, Series], ticks: Sequence[tuple[int, str]]) -> str:
    """Lines by their names. ticks are the block sizes under which the axis has a text."""
    top = _round_up(max(max(series.values()) for series in lines.values()))
    axes = _Axes(min(size for size, _ in ticks), max(size for size, _ in ticks), top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
        *axes.draw(ticks),
    ]
    for number, (name, series) in enumerate(lines.items()):
        parts += _line(axes, name, series, COLORS[number % len(COLORS)], number)
    return "\n".join([*parts, "</svg>", ""])


class _Axes:
    """From block sizes, on a logarithmic axis, and rates to places in the picture."""

    def __init__(self, smallest: int, largest: int, top: float) -> None:
        self._low, self._range = math.log2(smallest), math.log2(largest) - math.log2(smallest)
        self._top = top

    def x(self, size: int) -> float:
        return LEFT + (math.log2(size) - self._low) / self._range * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        return HEIGHT - BOTTOM - rate / self._top * (HEIGHT - TOP - BOTTOM)

    def draw(self, ticks: Sequence[tuple[int, str]]) -> list[str]:
        lines = []
        for step in range(6):
            rate = self._top * step / 5
            y = self.y(rate)
            lines += [
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>',
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{rate:g}</text>',
            ]
        for size, text in ticks:
            place = f'x="{self.x(size):.1f}" y="{HEIGHT - BOTTOM + 18}"'
            lines.append(f'<text {place} text-anchor="middle">{escape(text)}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        lines.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">block size</text>')
        lines.append(f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">GB/s</text>')
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


def _round_up(rate: float) -> float:
    """The next of 1, 2 or 5 times a power of ten, whose fifths are short numbers."""
    power: float = 10.0 ** math.floor(math.log10(rate))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= rate)
