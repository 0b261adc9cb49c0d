"""The simulated NPUs that come with the package: a libascendcl.so that computes on the host.

    export KVFERRY_ASCENDCL=$(kvferry simulator)

Whatever finds AscendCL by that variable then has NPUs: the engine, and kvferry.npu.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kvferry._library import LibraryError

FILE = Path(__file__).resolve().parent / "_lib" / "sim" / "libascendcl.so"


def library() -> str:
    """The path of the simulator's library, whatever the environment says. LibraryError where it is missing."""
    if not FILE.is_file():
        raise LibraryError(
            f"the simulated NPUs are missing: {FILE} does not exist. Build them with 'make build' in a source tree, or"
            " install the wheel for this platform."
        )
    return str(FILE)


def run(arguments: argparse.Namespace) -> int:
    """The command: print the path; 1 where there is nothing."""
    try:
        print(library())
    except LibraryError as e:
        print(f"kvferry simulator failed: {e}", file=sys.stderr)
        return 1
    return 0


def add_command(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "simulator",
        help="print the path of the simulated NPUs",
        description="Print the path of the simulated NPUs: export KVFERRY_ASCENDCL=$(kvferry simulator).",
    )
    parser.set_defaults(run=run)
