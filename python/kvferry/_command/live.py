"""A line of a terminal that is written over while a command runs."""

from __future__ import annotations

import sys

from kvferry._command import terminal
from kvferry._command.output import Output

_BACK = "\r"


class Live:
    """The line, which is gone after the block. Where the output is no terminal that can do that, or with --quiet,
    nothing is printed."""

    def __init__(self, out: Output) -> None:
        self._shown = out.rewritable and not out.quiet

    def show(self, text: str) -> None:
        """Replace what is shown. It is cut to the width of the terminal."""
        if self._shown:
            sys.stdout.write(_BACK + terminal.cut(text, terminal.size()[0] - 1) + terminal.CLEAR_LINE)
            sys.stdout.flush()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")
