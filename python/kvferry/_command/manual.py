"""The man page, in troff's man macros, made from what the subcommands declare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kvferry._command import status
from kvferry._command.declaration import GLOBAL, Command, Option

FIRST_LINE = '.\\" Made by scripts/generate_manual.py from python/kvferry/_command.'


def page(description: str, commands: Sequence[Command]) -> str:
    """The text of kvferry.1."""
    return "\n".join(_lines(description, commands)) + "\n"


def _lines(description: str, commands: Sequence[Command]) -> Iterator[str]:
    yield FIRST_LINE
    yield '.TH KVFERRY 1 "" kvferry "User commands"'
    yield from (".SH NAME", "kvferry \\- " + _text(_clause(description)))
    yield from (".SH SYNOPSIS", ".B kvferry", "[\\fIoption\\fR ...] \\fIcommand\\fR [\\fIargument\\fR ...]")
    yield from (".SH DESCRIPTION", _text(description))
    yield from (".SH OPTIONS", "They may stand before and after the name of the command.")
    for option in GLOBAL:
        yield from _option(option)
    yield ".SH COMMANDS"
    for command in commands:
        yield from _command(command)
    yield ".SH EXIT STATUS"
    for number, meaning in status.MEANINGS.items():
        yield from (".TP", f".B {number}", _text(meaning))
    yield from (".SH ENVIRONMENT", _text(ENVIRONMENT))


ENVIRONMENT = (
    "The settings of engines are variables that begin with KVFERRY_ or MC_. docs/configuration.md describes them, and"
    " kvferry info prints those that are in effect."
)


def _command(command: Command) -> Iterator[str]:
    yield f".SS kvferry {_text(command.name)}" + "".join(
        f" {_text(_shown(o))}" for o in command.options if o.positional
    )
    yield _text(command.description)
    for option in command.options:
        yield from _option(option)
    if command.examples:
        yield from (".PP", "Examples:")
    for line, meaning in command.examples:
        yield from (".TP", f".B {_text(line)}", _text(meaning[0].upper() + meaning[1:] + "."))


def _option(option: Option) -> Iterator[str]:
    heads = [_text(_shown(option))] if option.positional else [f"\\fB{_text(name)}\\fR" for name in option.names]
    value = "" if option.positional or _is_flag(option.settings) else f" {_text(_metavar(option))}"
    yield from (".TP", f"{', '.join(heads)}{value}")
    parameters = {"default": option.settings.get("default"), "prog": "kvferry"}
    yield _text(option.help % parameters)


def _shown(option: Option) -> str:
    """An argument as the synopsis has it."""
    name = _metavar(option)
    return f"[{name}]" if option.settings.get("nargs") in ("?", "*") else name


def _metavar(option: Option) -> str:
    if "metavar" in option.settings:
        return str(option.settings["metavar"])
    if "choices" in option.settings:
        return "|".join(option.settings["choices"])
    return option.names[-1].lstrip("-").upper()


def _is_flag(settings: dict[str, Any]) -> bool:
    return settings.get("action", "store") not in ("store", "append")


def _clause(text: str) -> str:
    return text[0].lower() + text[1:].rstrip(".")


def _text(text: str) -> str:
    """Text in which troff finds no command of its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
