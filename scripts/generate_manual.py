"""Write docs/kvferry.1, the man page of the command: `generate_manual.py`.

`generate_manual.py --check` fails when the file is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "kvferry.1"

sys.path.insert(0, str(REPOSITORY / "python"))

from kvferry._command import main, manual, registered  # noqa: E402 - of this tree, whatever is installed


def run() -> int:
    """Write or check the page; the exit status."""
    text = manual.page(main.DESCRIPTION, registered.COMMANDS)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(REPOSITORY)} is out of date; run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
