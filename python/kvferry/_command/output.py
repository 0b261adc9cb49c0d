"""What the command prints: text for people, or one JSON value for programs.

A subcommand says everything twice at most: text by text(), table() and so on, which print nothing with --json, and its
result by result(), which prints nothing without. There are no colours.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from kvferry._command import terminal
from kvferry._errors import without_user

LEAST_ROOM = 20  # columns in which words are still broken into lines


class OutputError(RuntimeError):
    """The output has no room, or the like; the text says why."""


class Output:
    """Where a subcommand prints. stream and errors are standard output and standard error where not given."""

    def __init__(
        self,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        stream: TextIO | None = None,
        errors: TextIO | None = None,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self._stream: TextIO | None = stream or sys.stdout  # None where this process was started without one
        self._errors: TextIO | None = errors or sys.stderr
        self._unfinished: dict[str, Any] = {}

    @property
    def terminal(self) -> bool:
        """Whether text goes to a terminal."""
        return not self.as_json and self._stream is not None and self._stream.isatty()

    @property
    def rewritable(self) -> bool:
        """Whether text goes to a terminal on which a line can be written over."""
        return self.terminal and not terminal.is_dumb()

    @property
    def columns(self) -> int | None:
        """How wide the terminal is; None where text goes elsewhere, and lines are as long as they are."""
        return terminal.size()[0] if self.terminal else None

    def text(self, text: str = "") -> None:
        """A line of what was asked for."""
        if not self.as_json:
            self._print(harmless(text))

    def note(self, text: str) -> None:
        """A line around what was asked for; not with --quiet."""
        if not self.quiet:
            self.text(text)

    def detail(self, text: str) -> None:
        """A line that only --verbose shows."""
        if self.verbose:
            self.text(text)

    def paragraph(self, text: str, indent: int = 0) -> None:
        """text() of sentences: on a terminal broken between words, each further line after so many spaces."""
        columns = self.columns
        for line in [text] if columns is None else _broken(text, columns, indent):
            self.text(line)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> None:
        """A table, of which the columns with these indices are aligned to the right. With --quiet without headings. On
        a terminal a long text in the last column is broken between words."""
        for line in table_lines(headings, rows, right, self.columns)[1 if self.quiet else 0 :]:
            self.text(line)

    def result(self, value: Any) -> None:
        """All that was asked for, as one value that JSON has; only with --json. URLs are without user and password."""
        if self.as_json:
            self._print(without_user(json.dumps(value, indent=2)))

    def unfinished(self, value: dict[str, Any]) -> None:
        """What there is of the result, for a command that is about to fail: error() prints it."""
        self._unfinished = value

    def error(self, text: str) -> None:
        """A failure, on standard error; with --json also {"error": text} as the result, and what is unfinished."""
        self.warning(text)
        self.result({**self._unfinished, "error": text})

    def warning(self, text: str) -> None:
        """What the user should know beside the result, on standard error."""
        if self._errors is not None:
            print(harmless(text), file=self._errors, flush=True)

    def _print(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as e:
            raise OutputError(f"standard output cannot be written: {e.strerror}") from e


def harmless(text: str) -> str:
    """Lines without control characters but tabs: names of peers and entries of stores come from strangers, and a
    terminal would obey them. URLs are without user and password: what a command prints is passed on to others."""
    shown = without_user(text)
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in shown)


def printable(text: str) -> str:
    """harmless() for text within a line."""
    return harmless(text).replace("\n", "?").replace("\t", "?")


def table_lines(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Iterable[int] = (),
    columns: int | None = None,
    least: Sequence[int] = (),
) -> list[str]:
    """The lines of a table, its headings first. The last column is broken between words where the table does not fit in
    so many columns of a terminal. least is how wide each column is at least."""
    cells = [list(headings), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(terminal.width, column)) for column in zip(*cells)]
    widths = [max(both) for both in zip(widths, least or widths)]
    aligned = set(right)
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    lines = []
    for row in cells:
        *others, last = row
        first, *more = [last] if columns is None or len(others) in aligned else _broken(last, columns - before, 0)
        padded = zip([*others, first], widths)
        line = "  ".join(terminal.pad(cell, size, index in aligned) for index, (cell, size) in enumerate(padded))
        lines += [line.rstrip(), *(" " * before + part for part in more)]
    return lines


def _broken(text: str, columns: int, indent: int) -> list[str]:
    """Text in lines of so many columns, each after the first one with an indent. Words, such as paths, are not broken.
    Where there is little room, neither is the text."""
    if columns - indent < LEAST_ROOM:
        return [text]
    after = " " * indent
    return textwrap.wrap(text, columns, subsequent_indent=after, break_long_words=False, break_on_hyphens=False) or [
        text
    ]
