"""The calls of TransferEngine that take arrays of 64-bit integers, and no lists: an array is handed to the native
library as it is, and ranges that pages describe are made there."""

from __future__ import annotations

from typing import Any, SupportsIndex

from kvferry._arrays import Array, Pages, integers, pages
from kvferry._ffi import U64Array, u64
from kvferry._waiting import Seconds
from mooncake.engine._types import TransferNotify, TransferOpcode

READ = int(TransferOpcode.Read)
WRITE = int(TransferOpcode.Write)
GIB = 1 << 30


def time_for(sizes: U64Array) -> Seconds:
    """The seconds that a transfer is given for its bytes."""
    return lambda: sum(sizes.items()) / GIB


class ArrayTransfers:
    """The calls, in terms of what TransferEngine makes of them.

    An array is anything with a buffer of contiguous 8-byte integers, signed or not: NumPy's, array.array, one of
    ctypes, a memoryview. TypeError for anything else; ValueError for negative items, and for arrays of different
    lengths. A sync call reads the arrays until it returns, an async one keeps nothing of them.
    """

    def batch_transfer_sync_write_arrays(
        self,
        target_hostname: str,
        buffers: Any,
        peer_buffer_addresses: Any,
        lengths: Any,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """batch_transfer_sync_write() of arrays; 0 when all were written, or negative."""
        return self._transfer_arrays(target_hostname, _arrays(buffers, peer_buffer_addresses, lengths), WRITE)

    def batch_transfer_sync_read_arrays(
        self,
        target_hostname: str,
        buffers: Any,
        peer_buffer_addresses: Any,
        lengths: Any,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """batch_transfer_sync_read() of arrays; 0 when all were read, or negative."""
        return self._transfer_arrays(target_hostname, _arrays(buffers, peer_buffer_addresses, lengths), READ)

    def batch_transfer_async_write_arrays(
        self,
        target_hostname: str,
        buffers: Any,
        peer_buffer_addresses: Any,
        lengths: Any,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """batch_transfer_async_write() of arrays; a batch id, or 0 on failure."""
        return self._submit_arrays(target_hostname, _arrays(buffers, peer_buffer_addresses, lengths), WRITE)

    def batch_transfer_async_read_arrays(
        self,
        target_hostname: str,
        buffers: Any,
        peer_buffer_addresses: Any,
        lengths: Any,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """batch_transfer_async_read() of arrays; a batch id, or 0 on failure."""
        return self._submit_arrays(target_hostname, _arrays(buffers, peer_buffer_addresses, lengths), READ)

    def batch_transfer_sync_write_pages(
        self,
        target_hostname: str,
        src_pages: Any,
        dst_pages: Any,
        fields: Any,
        max_batch_size: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Write pages of several pools; 0 when all were written, or negative.

        src_pages are numbers of local pages, dst_pages as many of the peer's. fields is a C-contiguous array [rows, 5]
        with a row for each pool: (source base, source stride, destination base, destination stride, length), in bytes.
        For each row and each i, length bytes are moved between source base + src_pages[i] * source stride here and
        destination base + dst_pages[i] * destination stride at the peer. max_batch_size is how many ranges are under
        way at a time; 0 is no limit.
        """
        described = pages(src_pages, dst_pages, fields)
        return self._transfer_pages(target_hostname, described, WRITE, u64(max_batch_size, "max_batch_size"))

    def batch_transfer_sync_read_pages(
        self,
        target_hostname: str,
        src_pages: Any,
        dst_pages: Any,
        fields: Any,
        max_batch_size: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Read pages of several pools; 0 when all were read, or negative. The arguments are those of
        batch_transfer_sync_write_pages(): src_pages and the source bases are local here, too, as in Mooncake, and the
        bytes come from the peer's."""
        described = pages(src_pages, dst_pages, fields)
        return self._transfer_pages(target_hostname, described, READ, u64(max_batch_size, "max_batch_size"))

    def _transfer_arrays(self, target: str, arrays: tuple[U64Array, U64Array, U64Array], opcode: int) -> int:
        local, remote, sizes = arrays
        return self._transfer(
            target, local.address, remote.address, sizes.address, local.length, opcode, None, time_for(sizes)
        )

    def _submit_arrays(self, target: str, arrays: tuple[U64Array, U64Array, U64Array], opcode: int) -> int:
        local, remote, sizes = arrays
        return self._submit(target, local.address, remote.address, sizes.address, local.length, opcode, time_for(sizes))

    # What TransferEngine has for these.

    def _transfer(
        self,
        target: str,
        local: Array,
        remote: Array,
        sizes: Array,
        count: int,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
        more: Seconds,
    ) -> int:
        raise NotImplementedError

    def _submit(
        self,
        target: str,
        local: Array,
        remote: Array,
        sizes: Array,
        count: int,
        opcode: SupportsIndex,
        more: Seconds,
    ) -> int:
        raise NotImplementedError

    def _transfer_pages(self, target: str, described: Pages, opcode: int, max_batch: int) -> int:
        raise NotImplementedError


def _arrays(buffers: Any, peer_addresses: Any, lengths: Any) -> tuple[U64Array, U64Array, U64Array]:
    local, remote = integers(buffers, "buffers"), integers(peer_addresses, "peer_buffer_addresses")
    sizes = integers(lengths, "lengths")
    if not local.length == remote.length == sizes.length:
        raise ValueError("buffers, peer_buffer_addresses and lengths must have the same length")
    return local, remote, sizes
