"""The words that memory is filled with: each of 8 bytes says what it was put there for, by whom, and for which place.

From the high end, so that it can be read in a dump:

    bits  hexadecimal digits
    4     1   kind
    4     1   slot: of the initiator for the words of an operation, of the owner for those of offered memory
    12    3   incarnation: that an operation is meant for, or that the memory belongs to; its number modulo 4096
    24    6   number of the operation, or of the filling
    20    5   place: index of the word in the offered memory; in a buffer that is at rest, in the buffer
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

WORD = 8  # bytes
PLACES = 1 << 20
NUMBERS = 1 << 24
INCARNATIONS = 1 << 12
SLOTS = 1 << 4

PLACE_MASK = np.uint64(PLACES - 1)
HEAD_SHIFT = np.uint64(20)


class Kind(enum.IntEnum):
    """What a word was put there for."""

    ZERO = 0  # memory that nobody has written
    INITIAL = 1  # offered memory, before it was registered
    PAYLOAD = 2  # a source buffer, before the call
    RETURNED = 3  # a source buffer, after the call has returned
    EMPTY = 4  # a destination buffer, before the call
    CANARY = 5  # a destination buffer, after the call has returned
    WITHDRAWN = 6  # offered memory, after unregister_memory or close has returned
    UNUSED = 7  # a buffer that no call has used


MEANINGS = {
    Kind.ZERO: "zeros",
    Kind.INITIAL: "what offered memory held before it was registered",
    Kind.PAYLOAD: "payload",
    Kind.RETURNED: "what was put into a source buffer after its call had returned",
    Kind.EMPTY: "what a destination buffer held before its call",
    Kind.CANARY: "what was put into a destination buffer after its call had returned",
    Kind.WITHDRAWN: "what the owner put into memory after it had taken it back",
    Kind.UNUSED: "a buffer that no call had used",
}


def head(kind: Kind, slot: int, incarnation: int, number: int) -> int:
    """All of a word but its place, as the word's bits above it."""
    assert slot < SLOTS and number < NUMBERS, "a run has more operations or slots than words can tell apart"
    return ((kind << 4 | slot) << 12 | incarnation % INCARNATIONS) << 24 | number


def run(of: int, first: int, count: int) -> Words:
    """The words of one head for so many places in a row."""
    made: Words = np.arange(first, first + count, dtype=np.uint64) | np.uint64(of << 20)
    return made


def heads(words: Words) -> Words:
    found: Words = words >> HEAD_SHIFT
    return found


def places(words: Words) -> Words:
    found: Words = words & PLACE_MASK
    return found


def kind_of(of: int) -> int:
    return of >> 40


def number_of(of: int) -> int:
    return of & (NUMBERS - 1)


def describe(word: int) -> str:
    """A word in words."""
    of, place = word >> 20, word & (PLACES - 1)
    slot, incarnation = of >> 36 & 0xF, of >> 24 & 0xFFF
    kind: Any = kind_of(of)
    if kind not in Kind._value2member_map_:
        return f"{word:016x}: no word of this run"
    meaning = MEANINGS[Kind(kind)]
    return f"{word:016x}: {meaning}, slot {slot}, incarnation {incarnation}, #{number_of(of)}, place {place:#x}"
