"""What the doctor says of engines of its own, which are made as those of applications are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from kvferry._command import engines
from kvferry._command.declaration import CommandError
from kvferry._command.findings import Finding, error, ok
from kvferry._command.rates import environment

# The doctor's engines leave the ports and files alone that the settings have for the application's.
APART = {"KVFERRY_METRICS_LISTEN": "", "KVFERRY_TRACE_FILE": "", "MC_LOG_DIR": ""}
QUIET = {"MC_LOG_LEVEL": "ERROR"}  # other findings have what the engine would warn of
NO_FILES = "too many open files"  # the system's words, in the engine's errors


def of_start(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Whether an engine with these settings starts. arguments has metadata and name."""
    try:
        with environment({**APART, **QUIET}), engines.engine(arguments):
            yield ok("engine", "an engine with these settings starts")
    except CommandError as e:
        yield of_failed_start(str(e))


def of_failed_start(text: str) -> Finding:
    """An engine cannot be made, and text says why."""
    if NO_FILES in text:
        return no_descriptors()
    return error("engine", text, "Correct what it names: the engines of applications with these settings fail alike.")


def no_descriptors() -> Finding:
    """This process cannot open a socket."""
    return error(
        "descriptors",
        "this process has no file descriptor left for a connection",
        "Raise the limit of open files (ulimit -n), for the application too.",
    )
