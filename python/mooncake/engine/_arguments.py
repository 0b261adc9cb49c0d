"""The argument lists that several calls of TransferEngine share, each in one place.

A decorator here makes a call of a method. The call has Mooncake's parameters, which inspect and help() show. It packs
their values as the C functions take them, hands them to the method, and turns a refusal into a failure value. Type
checkers see __init__.pyi, which has each call in full.

The method gets the target, the Ranges, and the ExtraTime that the transfer is given for its bytes; an opcode and
further arguments of the call come after them. transport_hint and nic_hint are taken and not used.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from typing import Any, Callable, SupportsIndex, TypeVar

from kvferry._arrays import Array, integers, pages
from kvferry._ffi import Integers, U64Array, pack_u64, u64, u64_array
from kvferry._waiting import ExtraTime
from mooncake.engine._refusals import REASONS, Refused, refused
from mooncake.engine._types import TransferNotify, TransferOpcode

READ = int(TransferOpcode.Read)
WRITE = int(TransferOpcode.Write)
GIB = 1 << 30
FAILURE = -1  # what a blocking call returns when it fails; others are negative, too
NO_BATCH = 0  # what a call that starts a batch returns when it fails

Ranges = tuple[Array, Array, Array, int]  # local addresses, addresses at the peer, lengths, and their number
Lists = Iterable[Integers]
Method = TypeVar("Method", bound=Callable[..., Any])
Transfer = Callable[..., int]


def one_range(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves one range."""

    def call(
        self: Any,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        ranges = _one(buffer, peer_buffer_address, length)
        try:
            return method(self, target_hostname, ranges, lambda: operator.index(length) / GIB)
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def one_range_either_way(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves one range, with an opcode and a notification."""

    def call(
        self: Any,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        opcode: SupportsIndex,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        ranges = _one(buffer, peer_buffer_address, length)
        try:
            return method(self, target_hostname, ranges, lambda: operator.index(length) / GIB, opcode, notify)
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def one_range_on_stream(method: Callable[..., None]) -> Callable[..., None]:
    """A call that moves one range in the order of a stream. It raises RuntimeError where others return a failure."""

    def call(
        self: Any,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None:
        ranges, stream = _one(buffer, peer_buffer_address, length), u64(stream_ptr, "stream_ptr")
        try:
            method(self, target_hostname, ranges, stream)
        except REASONS as e:
            raise RuntimeError(f"transfer with {target_hostname!r}: {e}") from e

    return _named(call, method)


def many_ranges(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves ranges that sequences describe."""

    def call(
        self: Any,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        local, remote, sizes = _lists(buffers, peer_buffer_addresses, lengths)
        try:
            return method(self, target_hostname, _ranges(local, remote, sizes), time_for(sizes))
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def many_ranges_either_way(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves ranges that sequences describe, with an opcode."""

    def call(
        self: Any,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        local, remote, sizes = _lists(buffers, peer_buffer_addresses, lengths)
        try:
            return method(self, target_hostname, _ranges(local, remote, sizes), time_for(sizes), opcode)
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def many_ranges_with_notification(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves ranges that sequences describe, with an opcode and a notification."""

    def call(
        self: Any,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        local, remote, sizes = _lists(buffers, peer_buffer_addresses, lengths)
        try:
            return method(self, target_hostname, _ranges(local, remote, sizes), time_for(sizes), opcode, notify)
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def many_ranges_on_stream(method: Callable[..., None]) -> Callable[..., None]:
    """A call that moves ranges in the order of a stream. It raises RuntimeError where others return a failure."""

    def call(
        self: Any,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None:
        local, remote, sizes = _lists(buffers, peer_buffer_addresses, lengths)
        stream = u64(stream_ptr, "stream_ptr")
        try:
            method(self, target_hostname, _ranges(local, remote, sizes), stream)
        except REASONS as e:
            raise RuntimeError(f"transfer with {target_hostname!r}: {e}") from e

    return _named(call, method)


def ranges_of_arrays(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves ranges that arrays of 64-bit integers describe: see kvferry._arrays.

    TypeError for any other object; ValueError for negative items, and for arrays of different lengths.
    """

    def call(
        self: Any,
        target_hostname: str,
        buffers: Any,
        peer_buffer_addresses: Any,
        lengths: Any,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        local = integers(buffers, "buffers")
        remote = integers(peer_buffer_addresses, "peer_buffer_addresses")
        sizes = integers(lengths, "lengths")
        if not local.length == remote.length == sizes.length:
            raise ValueError("buffers, peer_buffer_addresses and lengths must have the same length")
        try:
            return method(self, target_hostname, _ranges(local, remote, sizes), time_for(sizes))
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def ranges_of_pages(method: Transfer, failure: int = FAILURE) -> Transfer:
    """A call that moves pages of several pools. The method gets the target, the Pages, and how many ranges may be under
    way at a time. TypeError or ValueError for arrays that describe no pages."""

    def call(
        self: Any,
        target_hostname: str,
        src_pages: Any,
        dst_pages: Any,
        fields: Any,
        max_batch_size: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        described = pages(src_pages, dst_pages, fields)
        max_batch = u64(max_batch_size, "max_batch_size")
        try:
            return method(self, target_hostname, described, max_batch)
        except REASONS as e:
            return _refused(target_hostname, e, failure)

    return _named(call, method)


def blocks_of_regions(method: Callable[..., Any]) -> Callable[..., Any]:
    """A call that moves blocks of regions. The method gets the endpoint, the four lists of the regions, and the three
    lists of their blocks."""

    def call(
        self: Any,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Lists,
        remote_offsets: Lists,
        lengths: Lists,
    ) -> Any:
        regions = local_base_addresses, local_capacities, remote_base_addresses, remote_capacities
        return method(self, endpoint, regions, (local_offsets, remote_offsets, lengths))

    return _named(call, method)


def direction(opcode: SupportsIndex) -> int:
    """READ or WRITE. Refused for any other number."""
    number = operator.index(opcode)
    if number not in (READ, WRITE):
        raise Refused(f"{number} is no opcode: it must be Read (0) or Write (1)")
    return number


def _named(call: Method, method: Callable[..., Any]) -> Method:
    """Give a call the method's name and text. It keeps its own parameters, so functools.wraps() is of no use here."""
    call.__name__, call.__qualname__, call.__module__ = method.__name__, method.__qualname__, method.__module__
    call.__doc__ = method.__doc__
    return call


def _refused(target: str, reason: Exception, failure: int) -> int:
    value: int = refused(f"transfer with {target}", reason, failure)
    return value


def _one(buffer: SupportsIndex, peer_address: SupportsIndex, length: SupportsIndex) -> Ranges:
    try:
        return pack_u64(buffer), pack_u64(peer_address), pack_u64(length), 1
    except struct.error:
        raise TypeError(
            "buffer, peer_buffer_address and length must be integers from 0 to 2^64-1, "
            f"not {buffer!r}, {peer_address!r} and {length!r}"
        ) from None


def _lists(buffers: Integers, peer_addresses: Integers, lengths: Integers) -> tuple[U64Array, U64Array, U64Array]:
    return (
        u64_array(buffers, "buffers"),
        u64_array(peer_addresses, "peer_buffer_addresses"),
        u64_array(lengths, "lengths"),
    )


def _ranges(local: U64Array, remote: U64Array, sizes: U64Array) -> Ranges:
    """The ranges of three arrays, which the caller keeps while they are in use. Refused if their lengths differ."""
    count = sizes.length
    if not local.length == remote.length == count:
        raise Refused(f"{local.length} buffers, {remote.length} peer addresses and {count} lengths do not match")
    return local.address, remote.address, sizes.address, count


def time_for(sizes: U64Array) -> ExtraTime:
    """The extra time of a transfer: a second for each GiB."""
    return lambda: sum(sizes.items()) / GIB
