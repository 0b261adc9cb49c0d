"""The simulated devices that come with the package: a libascendcl.so and a libcuda.so.1 that compute on the host.

    export KVFERRY_ASCENDCL=$(kvferry simulator) KVFERRY_CUDA=$(kvferry simulator cuda)

The engine and kvferry.npu then have simulated NPUs, the engine and kvferry.gpu simulated GPUs. So has any other program
that finds the libraries by these variables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kvferry._command import status
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.output import Output
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


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command: print the path."""
    try:
        file = library(arguments.kind)
    except LibraryError as e:
        raise CommandError(str(e)) from e
    out.text(file)
    out.result({"kind": arguments.kind, "library": file})
    return status.OK


COMMAND = Command(
    name="simulator",
    help="print the path of the simulated devices",
    description="Print the path of a library that simulates NPUs or GPUs, for the variables KVFERRY_ASCENDCL and"
    " KVFERRY_CUDA.",
    run=run,
    options=(option("kind", nargs="?", choices=tuple(FILES), default="npu", help="the kind of device (%(default)s)"),),
    examples=(
        Example("export KVFERRY_ASCENDCL=$(kvferry simulator)", "simulate NPUs"),
        Example("export KVFERRY_CUDA=$(kvferry simulator cuda)", "simulate GPUs"),
    ),
)
