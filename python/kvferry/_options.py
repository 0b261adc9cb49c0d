"""Values of the command's options.

A kind of values is a function from a text, which raises ValueError for one that is no such value. What the kind takes
is declared by `takes`, for the message that a user gets then.
"""

from __future__ import annotations

import argparse
from typing import Any, Callable, TypeVar

Kind = Callable[[str], Any]
_Kind = TypeVar("_Kind", bound=Kind)

_EXPECTED: dict[Kind, str] = {}


def takes(expected: str) -> Callable[[_Kind], _Kind]:
    """Declare what a kind of values takes, as words after "is not"."""

    def declare(kind: _Kind) -> _Kind:
        _EXPECTED[kind] = expected
        return kind

    return declare


def expected(kind: Kind) -> str:
    """What a kind takes. KeyError for one that does not declare it."""
    return _EXPECTED[kind]


def checked(kind: Kind) -> Kind:
    """The kind for argparse, whose own message would have the name of the function."""

    def value(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected(kind)}") from None

    return value


def several(kind: Kind) -> Kind:
    """The values of an option that are joined by commas."""

    @takes(f"{expected(kind)}, or several of these joined by commas")
    def values(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return values


_SCALES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@takes("a whole number from 1 on, perhaps with K, M or G after it")
def positive(text: str) -> int:
    """A number from 1 to 2^63-1, perhaps with K, M or G after it; else ValueError, as argparse wants it."""
    scale = _SCALES.get(text[-1:].upper(), 1)
    number = int(text[:-1] if scale > 1 else text) * scale
    if not 1 <= number < 1 << 63:
        raise ValueError(text)
    return number


@takes("a number of seconds above 0, and of at most a year")
def seconds(text: str) -> float:
    """A time above 0 and of at most a year, in seconds; else ValueError."""
    number = float(text)
    if not 0 < number <= 365 * 24 * 3600:
        raise ValueError(text)
    return number
