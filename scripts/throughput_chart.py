#!/usr/bin/env python3
"""Draw docs/throughput.svg, the README's chart, from the table in docs/performance.md; --check only compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "bench"))

import plot  # noqa: E402

PAGE, CHART = REPOSITORY / "docs" / "performance.md", REPOSITORY / "docs" / "throughput.svg"
HEADING = "### 16 processors"
TITLE = "WRITE of scattered blocks, 16 processors"
NAMES = {
    "one host": "kvferry, one host",
    "TCP, 8 lanes": "kvferry, TCP",
    "plain C, 4 lanes": "plain C, TCP",
    "Mooncake": "Mooncake, TCP",
}  # columns of the table, by the legend's order
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


def table(page: str) -> list[list[str]]:
    """The rows of cells of the table under HEADING, that of the column names first."""
    section = page.partition(HEADING)[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    if len(rows) < 3:
        raise ValueError(f"{PAGE} has no table under {HEADING!r}")
    return [rows[0], *rows[2:]]


def block_size(case: str) -> int:
    """The bytes of a block in a case such as "64 KiB x 64"."""
    found = re.fullmatch(r"(\d+) (KiB|MiB) x \d+", case)
    if found is None:
        raise ValueError(f"{case!r} is no case of blocks")
    return int(found[1]) * UNITS[found[2]]


def chart(page: str) -> str:
    """The SVG for the text of docs/performance.md."""
    columns, *rows = table(page)
    lines = {
        name: {block_size(row[0]): float(row[columns.index(column)].split(" / ")[0]) for row in rows}
        for column, name in NAMES.items()
    }
    ticks = [(block_size(row[0]), row[0]) for row in rows]
    return plot.svg(TITLE, lines, ticks, across="blocks of one batch")


def main() -> int:
    drawn = chart(PAGE.read_text(encoding="utf-8"))
    if "--check" not in sys.argv[1:]:
        CHART.write_text(drawn, encoding="utf-8")
    elif not CHART.exists() or CHART.read_text(encoding="utf-8") != drawn:
        print(f"{CHART} is not what {PAGE} says: run scripts/throughput_chart.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
