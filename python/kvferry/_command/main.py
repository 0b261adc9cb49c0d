"""Reads the arguments of the command, runs the subcommand, and turns errors into exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import kvferry
from kvferry._command import status
from kvferry._command.declaration import GLOBAL, Command, CommandError, Example, Option
from kvferry._command.output import Output, OutputError
from kvferry._command.registered import COMMANDS
from kvferry._errors import without_user
from kvferry._options import checked

DESCRIPTION = "Move KV cache between machines over TCP, and find out why it does not move, or moves slowly."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process. Returns the exit status."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        _discard_output()
        return status.NO_READER
    except OutputError as e:
        _discard_output()
        print(f"kvferry: {e}", file=sys.stderr)
        return status.FAILED


def _discard_output() -> None:
    """Python flushes standard output once more at its end, and would tell of the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Sequence[str]) -> int:
    """Run a subcommand. SystemExit for --help and --version, and for wrong arguments."""
    parser = make_parser(COMMANDS)
    chosen, rest = parser.parse_known_args(arguments)
    if rest:
        chosen.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if chosen.command is None:
        parser.print_help()
        return status.OK
    out = Output(chosen.json, chosen.quiet, chosen.verbose)
    command: Command = chosen.command
    try:
        with terminable():
            return command.run(chosen, out)
    except CommandError as e:
        out.error(f"kvferry {command.name} failed: {e}")
        return status.FAILED
    except Terminated:
        out.error(f"kvferry {command.name} was terminated")
        return status.TERMINATED
    except KeyboardInterrupt:
        out.error(f"kvferry {command.name} was interrupted")
        return status.INTERRUPTED


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. A command ends by it as by Ctrl-C: it gives back what it has at a peer or in a store."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise Terminated in the block. A handler of the program stays, and so does that it is ignored.

    In another thread than the first one nothing changes.
    """
    first = threading.current_thread() is threading.main_thread()
    if not first or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise_terminated(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait for the end of what the first one began
    raise Terminated


class Parser(argparse.ArgumentParser):
    """A parser that takes whole names of options only: a new option would change the meaning of a shortened one."""

    def __init__(self, *, description: str, **settings: Any) -> None:
        described = textwrap.fill(description, shutil.get_terminal_size().columns - 2)
        # It leaves the lines of the examples as they are, and those of the description too.
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, description=described, **settings)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(status.USAGE, f"{self.prog}: {without_user(message)}; see {self.prog} --help\n")


def make_parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    """A parser for these subcommands. The global options may stand before and after the subcommand's name."""
    parser = Parser(prog="kvferry", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"kvferry {kvferry.__version__}")
    add_options(parser, GLOBAL)
    parser.set_defaults(command=None, commands=commands, parser=parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in commands:
        subparser = subparsers.add_parser(
            command.name, help=command.help, description=command.description, epilog=epilog(command.examples)
        )
        add_options(subparser, command.options)
        # Without SUPPRESS, the default of one that is absent here would replace what was given before the name.
        group = subparser.add_argument_group("output")
        add_options(group, [o._replace(settings={**o.settings, "default": argparse.SUPPRESS}) for o in GLOBAL])
        subparser.set_defaults(command=command, parser=subparser)
    return parser


def add_options(group: argparse._ActionsContainer, options: Sequence[Option]) -> None:
    """Add declared options to a parser, or to a group of one."""
    for option in options:
        settings = dict(option.settings)
        if "type" in settings:
            settings["type"] = checked(settings["type"])
        if settings.get("nargs") == "*":
            settings.setdefault("default", [])  # without one argparse takes it for required
        group.add_argument(*option.names, help=option.help, **settings)


def epilog(examples: Sequence[Example]) -> str | None:
    """The examples below a subcommand's help."""
    if not examples:
        return None
    width = max(len(example.line) for example in examples)
    return "\n".join(["examples:", *(f"  {line:{width}}  {meaning}" for line, meaning in examples)])
