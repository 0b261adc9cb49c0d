"""What reports are made of, whichever benchmark they are of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """How two things compare: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(values, base))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: texts to the left, figures to the right."""
    texts = [not any(character.isdigit() for row in rows for character in row[i][:1]) for i in range(len(header))]
    texts[0] = True
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]
    rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, texts)]
    return "\n".join(_line(row, widths, texts) for row in (header, rule, *rows))


def _line(row: Sequence[str], widths: Sequence[int], texts: Sequence[bool]) -> str:
    cells = (cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(row, widths, texts))
    return f"| {' | '.join(cells)} |"
