"""The simulated devices that come with the package: a libascendcl.so and a libcuda.so.1 that compute on the host.

    export KVFERRY_ASCENDCL=$(kvferry simulator) KVFERRY_CUDA=$(kvferry simulator cuda)

The engine and kvferry.npu then have simulated NPUs, the engine and kvferry.gpu simulated GPUs. So has any other program
that finds the libraries by these variables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kvferry._library import LibraryError

FOLDER = Path(__file__).resolve().parent / "_lib" / "sim"
FILES = {"npu": "libascendcl.so", "cuda": "libcuda.so.1"}


def library(kind: str = "npu") -> str:
    """The path of the simulator's library of a kind of device, "npu" or "cuda", whatever the environment says.

    LibraryError where it is missing; ValueError for another kind.
    """
    if kind not in FILES:
        raise ValueError(f"there are no simulated devices of kind {kind!r}, only of {' and '.join(FILES)}")
    file = FOLDER / FILES[kind]
    if not file.is_file():
        raise LibraryError(
            f"the simulated devices are missing: {file} does not exist. Build them with 'make build' in a source tree,"
            " or install the wheel for this platform."
        )
    return str(file)


def run(arguments: argparse.Namespace) -> int:
    """The command: print the path. Returns 0, or 1 where the library is missing."""
    try:
        print(library(arguments.kind))
    except LibraryError as e:
        print(f"kvferry simulator failed: {e}", file=sys.stderr)
        return 1
    return 0


def add_command(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "simulator",
        help="print the path of the simulated devices",
        description="Print the path of the simulated devices: export KVFERRY_ASCENDCL=$(kvferry simulator), and"
        " KVFERRY_CUDA=$(kvferry simulator cuda).",
    )
    parser.add_argument("kind", nargs="?", choices=FILES, default="npu", help="the kind of device (default: npu)")
    parser.set_defaults(run=run)
