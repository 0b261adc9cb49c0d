"""A line of a terminal that is written over while a command runs."""

from __future__ import annotations

import shutil
import sys

from kvferry._command.output import Output

_BACK, _CLEAR = "\r", "\x1b[K"


class Live:
    """The line, which is gone after the block. Where the output is no terminal, or with --quiet, nothing is printed."""

    def __init__(self, out: Output) -> None:
        self._shown = out.terminal and not out.quiet

    def show(self, text: str) -> None:
        """Replace what is shown. It is cut to the width of the terminal."""
        if self._shown:
            room = shutil.get_terminal_size().columns - 1
            sys.stdout.write(_BACK + text[:room] + _CLEAR)
            sys.stdout.flush()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")
