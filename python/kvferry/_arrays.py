"""Arrays of 64-bit integers, taken from any object with a buffer as they are: no item becomes a Python object.

NumPy's arrays, array.array, arrays of ctypes and memoryviews are such objects. Any other object is a TypeError.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, Union

from kvferry._ffi import U64_MAX, Integers, U64Array, address_of, u64_array

NATIVE = "@=<" if sys.byteorder == "little" else "@=>!"
SIGNED, UNSIGNED = "qln", "QLN"
COLUMNS = 5  # of the rows that describe pages and regions

Array = Union[int, bytes]  # the address of an array of uint64_t, or the array


class Pages(NamedTuple):
    """Pages of several pools, as the C function takes them: see kvferry_submit_pages in transfer_engine_ext.h."""

    local: U64Array
    remote: U64Array
    rows: U64Array  # COLUMNS for each
    bytes: int  # of all ranges together

    @property
    def ranges(self) -> int:
        """How many ranges there are."""
        return self.local.length * (self.rows.length // COLUMNS)

    def arguments(self) -> tuple[Array, Array, int, Array, int]:
        """Page numbers, how many there are, the rows and their number."""
        rows = self.rows.length // COLUMNS
        return self.local.address, self.remote.address, self.local.length, self.rows.address, rows


class Blocks(NamedTuple):
    """Blocks of regions, as the C function takes them: see kvferry_submit_scatter in transfer_engine_ext.h."""

    regions: U64Array  # COLUMNS for each
    local_offsets: U64Array
    remote_offsets: U64Array
    lengths: U64Array

    def arguments(self) -> tuple[Array, int, Array, Array, Array, int]:
        """The regions and their number, offsets and lengths, and how many blocks there are."""
        offsets = self.local_offsets.address, self.remote_offsets.address
        return self.regions.address, self.regions.length // COLUMNS, *offsets, self.lengths.address, self.lengths.length


def blocks(
    local_base_addresses: Integers,
    local_capacities: Integers,
    remote_base_addresses: Integers,
    remote_capacities: Integers,
    local_offsets: Iterable[Integers],
    remote_offsets: Iterable[Integers],
    lengths: Iterable[Integers],
) -> Blocks:
    """The blocks that Mooncake's arguments of these names describe. TypeError for an item that is no integer from 0 to
    2^64-1; ValueError for lists of different lengths."""
    regions = [
        u64_array(local_base_addresses, "local_base_addresses").items(),
        u64_array(local_capacities, "local_capacities").items(),
        u64_array(remote_base_addresses, "remote_base_addresses").items(),
        u64_array(remote_capacities, "remote_capacities").items(),
    ]
    lists = [
        [u64_array(offsets, "local_offsets") for offsets in local_offsets],
        [u64_array(offsets, "remote_offsets") for offsets in remote_offsets],
        [u64_array(sizes, "lengths") for sizes in lengths],
    ]
    counts = [[array.length for array in arrays] for arrays in lists]
    if len({len(numbers) for numbers in (*regions, *counts)}) != 1 or not counts[0] == counts[1] == counts[2]:
        raise ValueError("the lists of regions, of their offsets and of their lengths have different lengths")
    rows = u64_array([number for row in zip(*regions, counts[0]) for number in row], "regions")
    return Blocks(rows, *(_joined(arrays) for arrays in lists))


def _joined(arrays: list[U64Array]) -> U64Array:
    packed = b"".join(array.owner for array in arrays)
    return U64Array(packed, len(packed) // 8, packed)


def integers(values: Any, name: str) -> U64Array:
    """The items of a contiguous one-dimensional array of 64-bit integers. name is the argument's, for errors.

    ValueError for a negative item. The array must not change while the result is in use.
    """
    view = _view(values, name)
    if view.ndim != 1:
        raise TypeError(f"{name} must be a one-dimensional array")
    _check_items(view, name)
    if not view.contiguous:
        raise TypeError(f"{name} must be contiguous")
    if _is_signed(view) and not _highest_bytes(view).isascii():
        raise ValueError(f"{name} must not contain negative values")
    return _array(view)


def pages(src_pages: Any, dst_pages: Any, fields: Any) -> Pages:
    """The pages that Mooncake's arguments of these names describe.

    src_pages and dst_pages are arrays of page numbers, as integers() takes them, of the same length. fields is a
    C-contiguous array of 64-bit integers with a row for each pool: (source base, source stride, destination base,
    destination stride, length), in bytes, where the source is this process and the destination the peer. A TypeError or
    a ValueError says what is wrong with them.
    """
    local, remote = integers(src_pages, "src_pages"), integers(dst_pages, "dst_pages")
    view = _view(fields, "fields")
    if view.ndim != 2 or view.shape is None or view.shape[1] != COLUMNS:
        raise TypeError(f"fields must be a [rows, {COLUMNS}] array")
    _check_items(view, "fields")
    if not view.c_contiguous:
        raise TypeError("fields must be C-contiguous")
    if local.length != remote.length:
        raise ValueError("src_pages and dst_pages must have the same length")
    rows = _array(view)
    numbers = rows.items()
    lengths = numbers[4::COLUMNS]
    if any(n > U64_MAX // 2 for n in (*lengths, *numbers[1::COLUMNS], *numbers[3::COLUMNS])) or 0 in lengths:
        raise ValueError("fields rows need a positive length and non-negative strides")
    return Pages(local, remote, rows, local.length * sum(lengths))


def _view(values: Any, name: str) -> memoryview:
    try:
        return memoryview(values)
    except TypeError:
        raise TypeError(f"{name} must be an array with a buffer, not {type(values).__name__}") from None


def _check_items(view: memoryview, name: str) -> None:
    if view.itemsize != 8 or view.format.lstrip(NATIVE) not in {*SIGNED, *UNSIGNED}:
        raise TypeError(f"{name} must hold 8-byte integers (uint64/int64)")


def _is_signed(view: memoryview) -> bool:
    return view.format[-1] in SIGNED


def _highest_bytes(view: memoryview) -> bytes:
    """The byte of each item that has its highest bit, the sign."""
    return view.tobytes()[7 if sys.byteorder == "little" else 0 :: 8]


def _array(view: memoryview) -> U64Array:
    """A contiguous view's items. A read-only view is copied, because Python does not give its address."""
    count = view.nbytes // 8
    if count == 0 or view.readonly:
        packed = view.tobytes()
        return U64Array(packed, count, packed)
    return U64Array(address_of(view), count, view)
