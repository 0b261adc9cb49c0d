"""What a subcommand declares. The parser, the man page and the completion of shells are made from it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from kvferry._command.output import Output


class CommandError(RuntimeError):
    """What was asked for failed. The text is one sentence: who, what and why."""


class Option(NamedTuple):
    """An option, or without dashes an argument, of a subcommand.

    settings are those of argparse's add_argument. An option with a metavar of FILE or DIR is completed with file names.
    """

    names: tuple[str, ...]
    help: str
    settings: dict[str, Any]

    @property
    def positional(self) -> bool:
        """Whether it is given by its place."""
        return not self.names[0].startswith("-")


def option(*names: str, help: str, **settings: Any) -> Option:
    """Declare an option: "--host", or an argument: "peer"."""
    return Option(names, help, settings)


class Example(NamedTuple):
    """A command line, and what it does, in a few words."""

    line: str
    meaning: str


Run = Callable[[argparse.Namespace, Output], int]


class Command(NamedTuple):
    """A subcommand.

    help is a line without a full stop; description is whole sentences. run returns an exit status (status.py), prints
    by the Output only, and raises CommandError where what was asked for fails.
    """

    name: str
    help: str
    description: str
    run: Run
    options: Sequence[Option] = ()
    examples: Sequence[Example] = ()


GLOBAL = (
    option("--json", help="print one JSON value for programs, instead of text", action="store_true"),
    option("-q", "--quiet", help="print only what was asked for, and errors", action="store_true"),
    option("-v", "--verbose", help="print details too", action="store_true"),
)
