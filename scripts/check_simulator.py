"""Check that the simulator's C files call one way only: `python3 scripts/check_simulator.py`.

The comment at the head of sim/state.h lists the files in lines. A file may include its own header and those of lines
above its own, and each is named there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "sim"
PLACE = re.compile(r"^ \*   (\w+(?: \w+)*)(?:  .*)?$", re.MULTILINE)
INCLUDE = re.compile(r'^#include "(\w+)\.h"$', re.MULTILINE)


def layers() -> dict[str, int]:
    """Return the line that each file stands in, counted from the top; the file is named without its ending."""
    head, _, _ = (SOURCES / "state.h").read_text(encoding="utf-8").partition("*/")
    return {name: line for line, names in enumerate(PLACE.findall(head)) for name in names.split()}


def problems() -> list[str]:
    """Return what is wrong, a line for each include or file."""
    layer = layers()
    found = []
    sources = sorted(SOURCES.glob("*.[ch]"))
    for source in sources:
        if source.stem not in layer:
            found.append(f"sim/{source.name} is in no line of the list in sim/state.h")
            continue
        for included in INCLUDE.findall(source.read_text(encoding="utf-8")):
            if included != source.stem and layer.get(included, len(layer)) >= layer[source.stem]:
                found.append(f"sim/{source.name} includes {included}.h, which is not above it in sim/state.h")
    missing = set(layer) - {source.stem for source in sources}
    return found + [f"sim/state.h lists {name}, which is no file" for name in sorted(missing)]


def main() -> int:
    found = problems()
    for problem in found:
        print(f"check_simulator.py: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
