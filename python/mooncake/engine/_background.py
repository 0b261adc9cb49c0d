"""The calls of TransferEngine that start batches, and those that ask how the batches are."""

from __future__ import annotations

from functools import partial
from typing import SupportsIndex

from kvferry._bindings import KVFERRY_ERR_FAILED, KVFERRY_ERR_TIMED_OUT
from kvferry._ffi import Integers, u64, u64_array
from kvferry._waiting import ExtraTime, given_up
from mooncake.engine._arguments import (
    FAILURE,
    GIB,
    NO_BATCH,
    READ,
    WRITE,
    Ranges,
    direction,
    many_ranges,
    many_ranges_either_way,
    one_range,
    ranges_of_arrays,
)
from mooncake.engine._base import Calls
from mooncake.engine._refusals import Refused, fails_as


class BackgroundTransfers(Calls):
    """The calls. The buffers of a batch must stay until it has ended. Arrays are as in BlockingTransfers; nothing of
    them is kept."""

    @partial(many_ranges, failure=NO_BATCH)
    def batch_transfer_async_write(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """Start writing; a batch id, or 0 on failure. The buffers must stay until the batch has ended."""
        return self._submit(target, ranges, extra, WRITE)

    @partial(many_ranges, failure=NO_BATCH)
    def batch_transfer_async_read(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """Start reading; a batch id, or 0 on failure. The buffers must stay until the batch has ended."""
        return self._submit(target, ranges, extra, READ)

    @partial(many_ranges_either_way, failure=NO_BATCH)
    def batch_transfer_async(self, target: str, ranges: Ranges, extra: ExtraTime, opcode: SupportsIndex) -> int:
        """Start writing or reading; a batch id, or 0 on failure. The buffers must stay until the batch has ended."""
        return self._submit(target, ranges, extra, opcode)

    @partial(one_range, failure=NO_BATCH)
    def transfer_submit_write(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """Start writing one block; a batch id, or 0 on failure. The buffer must stay until the batch has ended."""
        return self._submit(target, ranges, extra, WRITE)

    @partial(ranges_of_arrays, failure=NO_BATCH)
    def batch_transfer_async_write_arrays(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """batch_transfer_async_write() of arrays; a batch id, or 0 on failure."""
        return self._submit(target, ranges, extra, WRITE)

    @partial(ranges_of_arrays, failure=NO_BATCH)
    def batch_transfer_async_read_arrays(self, target: str, ranges: Ranges, extra: ExtraTime) -> int:
        """batch_transfer_async_read() of arrays; a batch id, or 0 on failure."""
        return self._submit(target, ranges, extra, READ)

    def _submit(self, target: str, ranges: Ranges, extra: ExtraTime, opcode: SupportsIndex) -> int:
        number = direction(opcode)
        engine, segment = self._open(target, extra)
        batch = engine.submit(number, segment, *ranges, self._timeout, 1 / GIB)
        if batch == NO_BATCH:
            raise Refused(engine.last_error())
        engine.batches.name(batch, target)
        return batch

    @fails_as(FAILURE)
    def get_batch_transfer_status(self, batch_ids: Integers) -> int:
        """Wait for batches: 0 when all completed; -1 as soon as one failed, or its time limit, counted from its start,
        was over. In both cases all of the ids are freed; unfinished batches are ended and touch no buffer any more."""
        batches = list(dict.fromkeys(u64_array(batch_ids, "batch_ids").items()))
        engine = self._initialized()
        limit, peers = engine.batches.limit(batches), engine.batches.peers(batches)
        code = engine.batches.wait(batches)
        if code in (0, KVFERRY_ERR_FAILED):  # the native library has logged why one failed
            return 0 if code == 0 else FAILURE
        reason = engine.last_error()
        if code == KVFERRY_ERR_TIMED_OUT:
            reason = f"transfer with {peers}: {given_up(limit)}: {reason}"
        raise Refused(reason)

    @fails_as(FAILURE)
    def transfer_check_status(self, batch_id: SupportsIndex) -> int:
        """Look at a batch: 1 completed and 0 under way; -1 failed; -2 timed out by MC_SLICE_TIMEOUT. At 1 and -1 it is
        freed."""
        batch = u64(batch_id, "batch_id")
        engine = self._initialized()
        if batch not in engine.batches:
            raise Refused(f"there is no batch {batch}")
        return engine.batches.check(batch)
