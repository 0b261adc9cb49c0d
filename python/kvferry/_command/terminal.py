"""What a terminal shows: how much room it has, how much a text takes, and a screen that is written over."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence

# The other screen leaves what is on the usual one as it is, whatever size the window gets meanwhile.
OTHER_SCREEN, USUAL_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def size() -> tuple[int, int]:
    """Its columns and lines."""
    columns, lines = shutil.get_terminal_size()
    return columns, lines


def is_dumb() -> bool:
    """Whether it is one that only appends, by TERM."""
    return os.environ.get("TERM", "") in ("dumb", "")


def width(text: str) -> int:
    """How many columns a text without control characters takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """As much of the beginning as fits in so many columns."""
    if text.isascii():
        return text[:columns]
    for end, character in enumerate(text):
        columns -= _width(character)
        if columns < 0:
            return text[:end]
    return text


def pad(text: str, columns: int, right: bool) -> str:
    """The text with spaces to so many columns; right: it stands at their end."""
    spaces = " " * (columns - width(text))
    return spaces + text if right else text + spaces


class Screen:
    """A screen of the terminal on standard output. After the block the usual one is there again, with the lines that
    were shown last."""

    def __init__(self) -> None:
        self._shown: Sequence[str] = ()

    def show(self, lines: Sequence[str]) -> None:
        """Replace what is shown, with one call of the system. The lines must fit."""
        self._shown = lines
        sys.stdout.write(HOME + "\n".join(line + CLEAR_LINE for line in lines) + CLEAR_BELOW)
        sys.stdout.flush()

    def __enter__(self) -> Screen:
        sys.stdout.write(OTHER_SCREEN)
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.write(USUAL_SCREEN + "".join(f"{line}\n" for line in self._shown))
        sys.stdout.flush()
