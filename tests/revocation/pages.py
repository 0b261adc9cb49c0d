"""Pages of KV cache, and the bytes that they are filled with.

Memory is filled with one word of eight bytes again and again: its first byte says what it was put there for, and the
others for which round. So bytes of another round than the present one give themselves away, also where a copy ended in
the middle of a word.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable
from typing import Any

import numpy as np

from kvferry import Layout
from support.regions import make_region

TOKENS, HEADS, ROW = 16, 2, 1024  # of a page; bytes of a head of one token
PAGE = TOKENS * HEADS * ROW

AXES = {"hnd": "block head token dim", "nhd": "block token head dim"}
SHAPES = {"hnd": (HEADS, TOKENS, ROW), "nhd": (TOKENS, HEADS, ROW)}

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Kind(enum.IntEnum):
    """What bytes were put somewhere for."""

    OFFERED = 1  # pages, before they were offered
    PAYLOAD = 2  # what a peer writes
    REUSED = 3  # pages, after their offer was revoked
    EMPTY = 4  # what a peer reads into


def word(kind: Kind, round_: int) -> bytes:
    return bytes([kind]) + round_.to_bytes(7, "little")


def stray(found: Bytes, allowed: Iterable[bytes]) -> str:
    """Which bytes are of none of some words, in their places; "" where there are none."""
    allowed = list(allowed)
    if any((found.view(np.uint64) == np.frombuffer(each, np.uint64)).all() for each in allowed):
        return ""
    rows = found.reshape(-1, 8)
    right: Any = np.zeros(rows.shape, np.bool_)
    for each in allowed:
        right |= rows == np.frombuffer(each, np.uint8)
    wrong = np.flatnonzero(~right.all(axis=1))
    if not wrong.size:
        return ""
    first = rows[wrong[0]].tobytes()
    kind = Kind(first[0]).name if first[0] in list(Kind) else f"kind {first[0]}"
    number = int.from_bytes(first[1:], "little")
    return f"{wrong.size} words, from byte {8 * wrong[0]} on {first.hex()}: {kind} of round {number}"


class Array:
    """Pages at an address, for an engine and for a layout."""

    def __init__(self, address: int, count: int, order: str) -> None:
        shape = (count, *SHAPES[order])
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": "|u1"}


class Pages:
    """Some pages of this process, at a place that support.regions knows."""

    def __init__(self, count: int, place: str) -> None:
        self._region = make_region(count * PAGE, place)
        self._host = place == "host"
        self._count = count
        self.address = self._region.address

    def array(self, order: str = "hnd") -> Array:
        return Array(self.address, self._count, order)

    def layout(self, order: str) -> Layout:
        return Layout(self.array(order), AXES[order])

    def fill(self, numbers: Iterable[int], of: bytes) -> None:
        data = of * (PAGE // len(of))
        for number in numbers:
            self._region.write(number * PAGE, data)

    def read(self, number: int) -> Bytes:
        if self._host:
            page: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * PAGE).from_address(self.address + number * PAGE))
            return page
        copy: Bytes = np.frombuffer(self._region.read(number * PAGE, PAGE), np.uint8)
        return copy

    def free(self) -> None:
        self._region.free()
