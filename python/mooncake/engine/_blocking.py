"""The calls of TransferEngine that move bytes and return when that has ended.

Their way: a decorator of _arguments.py packs what the caller gave; _transfer() checks an opcode and a notification;
_move() opens the peer, has the engine move the bytes, and says how that ended.
"""

from __future__ import annotations

import time
from typing import SupportsIndex

from kvferry._arrays import Pages
from kvferry._bindings import KVFERRY_ERR_FAILED, notify_msg_t
from kvferry._engine import Engine
from kvferry._messages import notification
from kvferry._waiting import ExtraTime
from mooncake.engine._arguments import (
    FAILURE,
    GIB,
    READ,
    WRITE,
    Ranges,
    direction,
    many_ranges,
    many_ranges_with_notification,
    one_range,
    one_range_either_way,
    ranges_of_arrays,
    ranges_of_pages,
)
from mooncake.engine._base import Calls
from mooncake.engine._types import TransferNotify


class BlockingTransfers(Calls):
    """The calls. Whatever one returned or raised, nothing touches its buffers afterwards.

    Arrays are objects with a buffer of contiguous 8-byte integers, signed or not: NumPy's, array.array, ctypes', a
    memoryview. Any other object is a TypeError; negative items and arrays of different lengths are a ValueError. A call
    reads the arrays until it returns.
    """

    @one_range
    def transfer_sync_write(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """Write length bytes from buffer to the peer's address; 0 or negative."""
        return self._move(target, ranges, extra, WRITE)

    @one_range
    def transfer_sync_read(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """Read length bytes from the peer's address into buffer; 0 or negative."""
        return self._move(target, ranges, extra, READ)

    @one_range_either_way
    def transfer_sync(
        self,
        target: str,
        ranges: Ranges,
        extra: ExtraTime,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
    ) -> int:
        """Write or read. When that has completed, deliver the notification to the peer; 0 or negative."""
        return self._transfer(target, ranges, extra, opcode, notify)

    @many_ranges
    def batch_transfer_sync_write(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """transfer_sync_write() of many blocks at once; 0 when all were written, or negative."""
        return self._move(target, ranges, extra, WRITE)

    @many_ranges
    def batch_transfer_sync_read(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """transfer_sync_read() of many blocks at once; 0 when all were read, or negative."""
        return self._move(target, ranges, extra, READ)

    @many_ranges_with_notification
    def batch_transfer_sync(
        self,
        target: str,
        ranges: Ranges,
        extra: ExtraTime,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
    ) -> int:
        """transfer_sync() of many blocks at once, with one notification; 0 or negative."""
        return self._transfer(target, ranges, extra, opcode, notify)

    @ranges_of_arrays
    def batch_transfer_sync_write_arrays(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """batch_transfer_sync_write() of arrays; 0 when all were written, or negative."""
        return self._move(target, ranges, extra, WRITE)

    @ranges_of_arrays
    def batch_transfer_sync_read_arrays(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """batch_transfer_sync_read() of arrays; 0 when all were read, or negative."""
        return self._move(target, ranges, extra, READ)

    @ranges_of_pages
    def batch_transfer_sync_write_pages(self, target: str, pages: Pages, max_batch: int) -> int:
        """Write pages of several pools; 0 when all were written, or negative.

        src_pages are numbers of local pages, dst_pages as many of the peer's. fields is a C-contiguous array [rows, 5]
        with a row for each pool: (source base, source stride, destination base, destination stride, length), in bytes.
        For each row and each i, length bytes are moved between source base + src_pages[i] * source stride here and
        destination base + dst_pages[i] * destination stride at the peer. At most max_batch_size ranges are under way at
        a time; 0 is no limit.
        """
        return self._transfer_pages(target, pages, max_batch, WRITE)

    @ranges_of_pages
    def batch_transfer_sync_read_pages(self, target: str, pages: Pages, max_batch: int) -> int:
        """Read pages of several pools; 0 when all were read, or negative. The arguments are those of
        batch_transfer_sync_write_pages(). As in Mooncake, src_pages and the source bases are local here, too, and the
        bytes come from the peer's pages."""
        return self._transfer_pages(target, pages, max_batch, READ)

    def _transfer(
        self,
        target: str,
        ranges: Ranges,
        extra: ExtraTime,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
    ) -> int:
        message = None if notify is None else _message(notify)
        return self._move(target, ranges, extra, direction(opcode), message)

    def _move(
        self, target: str, ranges: Ranges, extra: ExtraTime, opcode: int, message: notify_msg_t | None = None
    ) -> int:
        """Open a peer and move the ranges; 0 or FAILURE. Each Python call on this way shows in a short transfer."""
        deadline = time.monotonic() + self._timeout
        engine, segment = self._open(target, extra)
        left = deadline - time.monotonic()
        code = engine.transfer(opcode, segment, *ranges, message, left, extra)
        return 0 if code == 0 else self._failed(engine, code, extra)

    def _transfer_pages(self, target: str, pages: Pages, max_batch: int, opcode: int) -> int:
        self._initialized()
        if pages.ranges == 0:
            return 0

        def extra() -> float:
            return pages.bytes / GIB

        deadline = time.monotonic() + self._timeout
        engine, segment = self._open(target, extra)
        left = deadline - time.monotonic()
        code = engine.transfer_pages(opcode, segment, pages, max_batch, left, extra)
        return 0 if code == 0 else self._failed(engine, code, extra)

    def _failed(self, engine: Engine, code: int, extra: ExtraTime) -> int:
        """FAILURE for a transfer whose reason the native library has logged. Refused says any other."""
        if code == KVFERRY_ERR_FAILED:
            return FAILURE
        raise self._failure(engine, code, extra)


def _message(notify: TransferNotify) -> notify_msg_t:
    if not isinstance(notify, TransferNotify):
        raise TypeError(f"notify must be a TransferNotify, not {type(notify).__name__}")
    return notification(notify.name, notify.msg)
