"""A scatter transfer: blocks of several regions, on their way between this process and one peer.

Its life: the engine submits it, and opens the peer in the background where that is needed. status() and wait() look
whether it has ended, and then free its batch and keep the result. The object keeps the engine alive. When the last
reference to it goes while it is under way, Python waits there until it has ended, or gives it up at its time limit.
Nothing touches its memory after that.
"""

from __future__ import annotations

import threading
import time
import weakref

from kvferry._bindings import KVFERRY_ERR_FAILED, KVFERRY_ERR_FORKED, KVFERRY_OK
from kvferry._engine import Engine
from kvferry._library import LibraryError
from kvferry._waiting import UNFINISHED

COMPLETED = 0
FAILED = -1  # nothing touches its memory any more
UNDER_WAY = -2  # its memory may be touched

GIVE_UP = 10.0  # seconds until a transfer that was given up and has not ended counts as stuck


class ScatterTransfer:
    """One scatter transfer. Any thread may call it."""

    def __init__(self, engine: Engine | None, batch: int, timeout: float) -> None:
        """Own a batch of the engine. batch 0 is a transfer that failed before it began. timeout is the time limit in
        seconds, from now."""
        self.timeout = timeout
        self.progress = ""  # how far it had come at its time limit
        self._lock = threading.RLock()
        self._deadline = time.monotonic() + timeout
        self._batch = batch
        self._engine = engine if batch != 0 else None  # None once the result is final
        self._result = FAILED
        if self._engine is not None:
            self._result = UNDER_WAY
            self._finalizer = weakref.finalize(self, _end, self._engine, batch, self._deadline)
            self._finalizer.atexit = False  # type: ignore[misc] # at interpreter exit the engine ends, and this with it
            self._engine.follow(self)

    def status(self) -> int:
        """COMPLETED, FAILED or UNDER_WAY, at once."""
        return self.wait(0)

    def wait(self, timeout: float) -> int:
        """Wait for the end, for up to timeout seconds; status(). LibraryError in a child that was forked meanwhile."""
        engine = self._engine
        if engine is None:
            return self._result
        code = engine.batches.wait_for(self._batch, timeout)
        if code == KVFERRY_ERR_FORKED:
            raise LibraryError(engine.last_error())
        if code == KVFERRY_OK:
            self._settle(COMPLETED)
        elif code == KVFERRY_ERR_FAILED:
            self._settle(FAILED)
        elif code not in UNFINISHED and engine.stuck is False:
            self._settle(FAILED)  # the end of the engine gave it up, unless another thread has settled it before
        return self._result

    def finish(self) -> bool:
        """Wait for the end, and give the transfer up at its time limit. Whether it ended before that. Also when a
        signal handler raises meanwhile, nothing touches its memory any more."""
        try:
            if self.wait(self._deadline - time.monotonic()) != UNDER_WAY:
                return True
            if self._engine is not None:
                self.progress = self._engine.last_error()
            self.cancel()
            self.wait(GIVE_UP)
        except BaseException:
            self._settle(FAILED)
            raise
        return False

    def cancel(self) -> None:
        """Give the transfer up, without waiting for its end."""
        engine = self._engine
        if engine is not None:
            engine.batches.cancel(self._batch)

    def before_close(self) -> None:
        """Take the result while the engine still has it."""
        self.status()

    def _settle(self, result: int) -> None:
        """Keep the result, and end and free the batch."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is None:
                return
            self._result = result
        self._finalizer.detach()
        engine.unfollow(self)
        engine.batches.discard(self._batch)


def _end(engine: Engine, batch: int, deadline: float) -> None:
    """Wait for the end of a transfer whose object is gone, and free its batch."""
    try:
        engine.batches.wait_for(batch, deadline - time.monotonic())
    finally:
        engine.batches.discard(batch)
