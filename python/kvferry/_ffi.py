"""Conversion of Python values to what the C functions take, and back.

ctypes truncates integers silently, so that -1 would become an address. Here, anything but an integer from 0 to 2^64-1
is a TypeError.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import struct
from collections.abc import Iterable
from typing import Any, SupportsIndex

from kvferry._bindings import Functions

U64_MAX = 2**64 - 1

Integers = Iterable[SupportsIndex]


class U64Array:
    """An array of uint64_t for a C function to read."""

    __slots__ = ("address", "length", "owner")

    def __init__(self, address: int | bytes, length: int, owner: Any) -> None:
        """owner keeps the memory while the C function runs: bytes, or a view of the caller's array."""
        self.address = address
        self.length = length
        self.owner = owner

    @property
    def pointer(self) -> int | None:
        """The address as a number, for a struct."""
        address = self.address
        return address if isinstance(address, int) else ctypes.cast(ctypes.c_char_p(address), ctypes.c_void_p).value

    def items(self) -> tuple[int, ...]:
        return _layout(self.length).unpack(self.owner)


def u64(value: SupportsIndex, name: str) -> int:
    """value as an int of 64 bits, unsigned. name is the argument's, for the error."""
    number = integer(value, name)
    if not 0 <= number <= U64_MAX:
        raise TypeError(f"{name} must be from 0 to 2^64-1, not {number}")
    return number


def integer(value: SupportsIndex, name: str) -> int:
    """value as an int. name is the argument's, for the error."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def flag(value: Any, name: str) -> bool:
    """value as a bool. A str is a TypeError, since bool("False") is True."""
    if not hasattr(type(value), "__bool__"):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return bool(value)


pack_u64 = struct.Struct("Q").pack  # the fastest way to an array of one item; struct.error where u64() raises TypeError


def u64_array(values: Integers, name: str) -> U64Array:
    """The items of a sequence of integers. A writable array of 64-bit integers is not copied."""
    items: Any = values if type(values) in (list, tuple, range) else _view_or_list(values, name)
    if isinstance(items, memoryview):
        if items.readonly or not items.contiguous:
            packed = items.tobytes()
            return U64Array(packed, len(items), packed)
        return U64Array(address_of(items), len(items), items)
    try:
        packed = _layout(len(items)).pack(*items)
    except struct.error:
        raise TypeError(f"{name} must be integers from 0 to 2^64-1") from None
    return U64Array(packed, len(items), packed)


@functools.lru_cache(maxsize=256)
def _layout(count: int) -> struct.Struct:
    return struct.Struct(f"{count}Q")


def _view_or_list(values: Any, name: str) -> Any:
    """A view of an array whose items are as C wants them; a list of any other sequence's items."""
    try:
        view = memoryview(values)
        if view.ndim == 1 and view.nbytes and (view.format in ("Q", "L") or _is_unsigned(view)):
            return view
        items = list(view.tolist())
    except (TypeError, ValueError, NotImplementedError):  # no buffer, or one of items that Python has no integers for
        try:
            return list(values)
        except TypeError:
            raise TypeError(f"{name} must be integers from 0 to 2^64-1, not {type(values).__name__}") from None
    if view.format == "?":
        raise TypeError(f"{name} must be integers from 0 to 2^64-1, and this array is of bools, such as a mask")
    return items


def _is_unsigned(view: memoryview) -> bool:
    """Whether these are signed 64-bit integers none of which is negative: no highest byte has its highest bit set."""
    return view.format in ("q", "l") and view.tobytes()[7::8].isascii()


def address_of(buffer: Any) -> int:
    """The address of a writable buffer of at least one byte. The caller keeps the buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class TextError(ValueError):
    """A text that C cannot have; the error names the argument."""


def c_string(text: str, name: str) -> bytes:
    """text as C takes it: UTF-8 without a NUL. name is the argument's, for errors, which do not repeat the text: it may
    have a password in it.

    Bytes that are not UTF-8 pass, if text has them as os.fsdecode() does. TextError for a NUL, and for a lone
    surrogate, which UTF-8 has no bytes for.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    encoded = utf8(text, name, "surrogateescape")
    if b"\0" in encoded:
        raise TextError(f"{name} must not have a NUL: it is character {text.index(chr(0))}")
    return encoded


def utf8(text: str, name: str, errors: str = "strict") -> bytes:
    """text as UTF-8. TextError for a lone surrogate, unless errors has a way to encode it."""
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as e:
        surrogate = text[e.start]
        raise TextError(f"{name} must not have a lone surrogate: {surrogate!r} is its character {e.start}") from None


def python_string(text: bytes | None) -> str:
    """The inverse of c_string(); "" for NULL."""
    return (text or b"").decode("utf-8", "surrogateescape")


def last_error(functions: Functions) -> str:
    """Why the calling thread's latest failed call failed."""
    return python_string(functions.kvferry_last_error())
