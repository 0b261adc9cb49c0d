"""Batches of an engine: waiting for them, looking at them, ending them.

A batch that a submit function of the engine returned has a time limit, which is kept here until the batch is freed.
"""

from __future__ import annotations

import math
import time
from ctypes import byref

from kvferry import _log
from kvferry._bindings import KVFERRY_ERR_IN_USE, KVFERRY_ERR_TIMED_OUT, Functions, kvferry_batch_status_t
from kvferry._ffi import U64Array, last_error, u64_array
from kvferry._waiting import wait_in_steps

COMPLETED = 1
UNDER_WAY = 0
FAILED = -1
SLICE_TIMED_OUT = -2  # it failed, and by MC_SLICE_TIMEOUT alone


class Batches:
    """The batches of one engine. Any thread may call it."""

    def __init__(self, functions: Functions, engine: int) -> None:
        self._functions = functions
        self._engine = engine
        self._deadlines: dict[int, float] = {}  # by time.monotonic()
        self._limits: dict[int, float] = {}  # seconds from submitting to the deadline
        self._peers: dict[int, str] = {}  # names, of the batches that name() got

    def add(self, batch: int, timeout: float, per_byte: float = 0) -> int:
        """Keep a batch that was just submitted, and return its id. Its time limit is timeout, and per_byte for each of
        its bytes, in seconds from now."""
        submitted = time.monotonic()
        size = self._functions.kvferry_batch_bytes(self._engine, batch) if per_byte else 0
        self._limits[batch] = limit = timeout + size * per_byte
        self._deadlines[batch] = submitted + limit
        return batch

    def name(self, batch: int, peer: str) -> None:
        """Keep the name of the peer of a batch, for peers()."""
        self._peers[batch] = peer

    def peers(self, batches: list[int]) -> str:
        """The peers of these batches, as far as they are known."""
        return ", ".join(sorted({self._peers[batch] for batch in batches if batch in self._peers}))

    def __contains__(self, batch: int) -> bool:
        """Whether add() got the batch and it is not freed."""
        return batch in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    def limit(self, batches: list[int]) -> float:
        """The shortest of these batches' time limits, in seconds."""
        return min((self._limits[batch] for batch in batches if batch in self._limits), default=0.0)

    def wait(self, batches: list[int]) -> int:
        """Wait until all of the batches have completed, one has failed, or one's time is over; then free them all."""
        deadlines = {batch: self._deadlines.get(batch, 0.0) for batch in batches}
        try:
            return self._wait(deadlines)
        finally:
            for batch in deadlines:
                self.free(batch)

    def _wait(self, deadlines: dict[int, float]) -> int:
        while deadlines:
            ids = u64_array(list(deadlines), "batch ids")
            code = self.wait_for_all(ids, min(deadlines.values()) - time.monotonic())
            if code != KVFERRY_ERR_TIMED_OUT:
                return code
            # A batch that completed in time has no deadline any more.
            deadlines = {batch: limit for batch, limit in deadlines.items() if self.state(batch) == UNDER_WAY}
            if time.monotonic() >= min(deadlines.values(), default=math.inf):
                return code
        return 0

    def wait_for_all(self, ids: U64Array, timeout: float) -> int:
        """Wait for any batches of the engine, until all have completed or one has failed; the code of
        kvferry_batches_wait."""
        return wait_in_steps(
            timeout, lambda ms: self._functions.kvferry_batches_wait(self._engine, ids.address, ids.length, ms)
        )

    def wait_for(self, batch: int, timeout: float) -> int:
        """Wait for any batch of the engine; the code of kvferry_batch_wait."""
        return wait_in_steps(timeout, lambda ms: self._functions.kvferry_batch_wait(self._engine, batch, ms))

    def state(self, batch: int) -> int:
        """COMPLETED, UNDER_WAY, SLICE_TIMED_OUT or FAILED; also FAILED for an unknown batch."""
        status = kvferry_batch_status_t()
        if batch not in self or self._functions.kvferry_batch_status(self._engine, batch, byref(status)) != 0:
            return FAILED
        if status.completed + status.failed < status.tasks:
            return UNDER_WAY
        if status.failed == 0:
            return COMPLETED
        return SLICE_TIMED_OUT if status.failed == status.timed_out else FAILED

    def check(self, batch: int) -> int:
        """state(). A batch that completed or failed is then freed."""
        state = self.state(batch)
        if state in (COMPLETED, FAILED):
            self.free(batch)
        return state

    def cancel(self, batch: int) -> None:
        """Give up the unfinished transfers of any batch. The batch ends when nothing touches its memory any more."""
        self._functions.kvferry_batch_cancel(self._engine, batch)

    def free(self, batch: int) -> None:
        """End and free a batch that add() got, once. Nothing is done for any other batch."""
        self._limits.pop(batch, None)
        self._peers.pop(batch, None)
        if self._deadlines.pop(batch, None) is not None:
            self.discard(batch)

    def discard(self, batch: int) -> None:
        """End and free any batch. Where something still uses its memory, the log has an error."""
        if self._functions.kvferry_batch_discard(self._engine, batch) == KVFERRY_ERR_IN_USE:
            _log.error("%s", last_error(self._functions))
