"""Transfers: bytes on their way between this process and a peer."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import threading
import time
import weakref
from collections.abc import Generator
from ctypes import byref, create_string_buffer, sizeof
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from kvferry import _bindings, _log
from kvferry._bindings import KVFERRY_OK, KVFERRY_REASON_NONE, kvferry_failure_t, kvferry_outcome_t
from kvferry._completions import Completions, Flight, Wake, call_soon
from kvferry._errors import (
    Cancelled,
    EngineClosed,
    Error,
    PeerUnreachable,
    RangeRejected,
    Revoked,
    TimedOut,
    TransferError,
)
from kvferry._ffi import U64_MAX, python_string
from kvferry._managed import OfProcess
from kvferry._spans import Span
from kvferry._waiting import UNFINISHED, seconds, wait_in_steps

if TYPE_CHECKING:
    from kvferry._native import Engine

GIVE_UP = 10.0  # seconds until a transfer that was given up and has not ended counts as stuck
FOR_EVER = float("inf")
REASON_SIZE = 1024  # bytes of the text of a failure

_UNREACHABLE = (
    _bindings.KVFERRY_REASON_CONNECTION,
    _bindings.KVFERRY_REASON_STALLED,
    _bindings.KVFERRY_REASON_SECURITY,
    _bindings.KVFERRY_REASON_METADATA,
)
_REJECTED = (_bindings.KVFERRY_REASON_REJECTED, _bindings.KVFERRY_REASON_LOCAL_MEMORY)


class Progress(NamedTuple):
    """How far a transfer has come."""

    bytes: int  # that are known to have arrived
    total: int  # that the transfer moves
    rate: float  # bytes per second, from its start until now or until its end

    def __str__(self) -> str:
        return f"{self.bytes} of {self.total} bytes are known to have arrived"


class Transfer(OfProcess):
    """Bytes on their way, or a message. Peer.read(), Peer.write() and Peer.send() start it; awaiting it gives result().

    It goes on by itself. The memory that it moves is kept until nothing touches it any more, also where the program
    drops this object. Any thread may use it, and any number of event loops may await it. The engine lives as long as
    it. It ends by itself, by its time limit, by cancel(), and when its engine is closed.
    """

    def __init__(
        self,
        engine: Engine,
        completions: Completions,
        flight: Flight,
        who: str,
        what: str,
        total: int,
        rejected: type[TransferError],
        span: Span | None,
    ) -> None:
        """rejected is what it raises where it was rejected as a whole, and not for one of its ranges."""
        self.peer = who  # the peer's name
        self._what = what
        self._engine = engine
        self._completions = completions
        self._flight = flight
        self._functions, self._handle = engine.native
        self._total = total
        self._rejected = rejected
        self._span = span  # for the program's traces; None for none
        self._ended = False
        self._error: Error | None = None
        self._final = Progress(0, total, 0.0)
        self._told: list[Wake] = []  # when it has ended
        flight.transfer = weakref.ref(self)

    # Its end

    def done(self) -> bool:
        """Whether it has ended. Then nothing touches its memory any more."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, for up to timeout seconds; None is without a limit. Whether it has.

        Ctrl-C ends the wait, and the transfer goes on. In a coroutine, await it instead: this blocks the loop.
        """
        most = FOR_EVER if timeout is None else seconds(timeout, "a timeout")
        if not self._ended:
            self._engine.check_fork()
            code = wait_in_steps(
                most,
                lambda ms: self._functions.kvferry_batch_wait(self._handle, self._batch, ms),
            )
            if code not in UNFINISHED:
                self._completions.settle(self._flight)
        if self._ended and self._span is not None:
            self._span.make()  # or wait until the thread that settled the transfer has made it
        return self._ended

    @property
    def _batch(self) -> int:
        return self._flight.batch.value

    def result(self, timeout: float | None = None) -> int:
        """wait(), and the number of bytes that have moved.

        TransferError, of a class that says what kind of failure it is, or EngineClosed, where it has failed. An
        ordinary TimeoutError where it is still under way after timeout seconds: the transfer goes on.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self.peer}: {self._what}: still under way after {timeout} s: {self.progress}")
        return self._value()

    def exception(self, timeout: float | None = None) -> Error | None:
        """wait(), and what result() raises: None where it has succeeded."""
        if not self.wait(timeout):
            raise TimeoutError(f"{self.peer}: {self._what}: still under way after {timeout} s: {self.progress}")
        return self._error

    def _value(self) -> int:
        if self._error is not None:
            # A copy: what is raised gets a traceback with the frames of all callers, which this object must not keep.
            raise copy.copy(self._error)
        return self._final.bytes

    def cancel(self) -> bool:
        """Give it up, without waiting for its end. Whether it was still under way.

        It ends within milliseconds, mostly with Cancelled, and successfully where all bytes had arrived. Its memory is
        in use until then.
        """
        if self.done():
            return False
        self._functions.kvferry_batch_cancel(self._handle, self._batch)
        return True

    @property
    def progress(self) -> Progress:
        """How far it has come. Takes some nanoseconds for each range that moves.

        LibraryError in a forked child, where it was under way at the fork."""
        if not self._ended:
            self._engine.check_fork()
            self._look()
        return self._final

    def _look(self) -> kvferry_failure_t | None:
        """Take the progress, and the failure, from the library. None where it does not know the batch any more."""
        f = kvferry_failure_t()
        if self._functions.kvferry_batch_failure(self._handle, self._batch, byref(f), sizeof(f), None, 0) != KVFERRY_OK:
            return None
        seen = f.progress
        rate = seen.moved * 1e9 / seen.nanoseconds if seen.nanoseconds else 0.0
        self._final = Progress(seen.moved, self._total, rate)
        return f

    def settled(self) -> list[Wake]:
        """Take the result of the batch, which has ended. What is returned is to be called. The completions call it,
        under their lock, and once."""
        f = self._look()
        if f is None:
            self._error = EngineClosed(f"the engine was closed; {self._final}", who=self.peer, what=self._what)
        elif f.reason != KVFERRY_REASON_NONE:
            self._error = self._failure(f)
        told, self._told = self._told, []
        if self._span is not None:
            self._span.finish(self._outcome(), self._final.bytes, self._error)
            told.insert(0, self._span.make)
        self._ended = True
        return told

    def _outcome(self) -> kvferry_outcome_t:
        """How the batch has gone; zeros where the library does not know it any more."""
        o = kvferry_outcome_t()
        self._functions.kvferry_batch_outcome(self._handle, self._batch, byref(o), sizeof(o))
        return o

    def _failure(self, f: kvferry_failure_t) -> Error:
        """Why the batch has failed."""
        text = create_string_buffer(REASON_SIZE)
        self._functions.kvferry_batch_failure(self._handle, self._batch, byref(f), sizeof(f), text, REASON_SIZE)
        why, who, what, done = python_string(text.value), self.peer, self._what, self._final.bytes
        if f.reason in _REJECTED:
            if f.request == U64_MAX:
                return self._rejected(why, who=who, what=what, done=done)
            what = f"{what}, range {f.request}: {f.length} bytes, here at {f.local:#x}, there at {f.remote:#x}"
            return RangeRejected(
                why, who=who, what=what, done=done, index=f.request, local=f.local, remote=f.remote, nbytes=f.length
            )
        if f.reason == _bindings.KVFERRY_REASON_CLOSED:
            return EngineClosed(f"{why}; {self._final}", who=who, what=what)
        if f.reason == _bindings.KVFERRY_REASON_CANCELLED:
            return Cancelled(f"{why}; {self._final}", who=who, what=what, done=done)
        kind: type[TransferError] = TransferError
        if f.reason in _UNREACHABLE:
            kind = PeerUnreachable
        elif f.reason == _bindings.KVFERRY_REASON_TIMEOUT:
            kind = TimedOut
            if "MC_SLICE_TIMEOUT" not in why:
                why = f"{why}; the limit is {self._flight.limit}"
        elif f.reason == _bindings.KVFERRY_REASON_REVOKED:
            kind = Revoked
        return kind(why, who=who, what=what, done=done)

    # Who is told of it

    def _tell(self, wake: Wake) -> bool:
        """Have wake called when it has ended. False where it has ended before."""
        with self._completions.lock:
            if not self._ended:
                self._told.append(wake)
                self._flight.waited_for = self
            return not self._ended

    def _untell(self, wake: Wake) -> None:
        with self._completions.lock:
            if wake in self._told:
                self._told.remove(wake)
            if not self._told:
                self._flight.waited_for = None

    def add_done_callback(self, function: Callable[[Transfer], object]) -> None:
        """Have function(transfer) called when it has ended.

        Where an event loop runs in the calling thread, the loop calls it, in the present context. Elsewhere the
        engine's thread for callbacks does. Where the transfer has ended before, the calling thread calls it at once, or
        the loop soon. What it raises goes to the loop's exception handler, or to threading.excepthook.
        """
        if not callable(function):
            raise TypeError(f"a callback is a function, not {function!r}")
        self._engine.check_fork()
        context = contextvars.copy_context()
        loop = asyncio._get_running_loop()
        if loop is None:
            self._add_for_thread(lambda: context.run(function, self))
            return
        watching = self._completions.watch(loop)
        watching.users += 1

        def call() -> None:
            watching.users -= 1
            function(self)

        def wake() -> None:
            call_soon(loop, call, context=context)

        if self.done() or not self._tell(wake):
            wake()

    def _add_for_thread(self, call: Wake) -> None:
        if not self.done():
            thread = self._completions.thread()
            if thread is None:
                self.wait()
            elif self._tell(functools.partial(thread.call, call)):
                return
        try:
            call()
        except Exception as e:
            threading.excepthook(threading.ExceptHookArgs((type(e), e, e.__traceback__, threading.current_thread())))

    def __await__(self) -> Generator[Any, None, int]:
        return self._awaited().__await__()

    async def _awaited(self) -> int:
        """result() for a coroutine. A task that is cancelled meanwhile gives the transfer up, and sees CancelledError
        when nothing touches the memory any more."""
        if not self._ended and not self.done():
            try:
                await self._end(FOR_EVER)
            except asyncio.CancelledError:
                self.cancel()
                deadline = time.monotonic() + GIVE_UP
                while not self._ended and time.monotonic() < deadline:
                    try:
                        await self._end(deadline - time.monotonic())
                    except asyncio.CancelledError:
                        continue  # the task is being cancelled as it is
                if not self._ended:
                    _log.error("%s: %s was given up, and is stuck: its memory is kept", self.peer, self._what)
                raise
        if self._span is not None:
            self._span.make()
        return self._value()

    async def _end(self, timeout: float) -> None:
        """Return when it has ended, or the time is over."""
        loop = asyncio.get_running_loop()
        watching = self._completions.watch(loop)
        ended = loop.create_future()

        def wake() -> None:
            call_soon(loop, _finish, ended)

        if not self._tell(wake):
            return
        watching.users += 1
        try:
            if timeout == FOR_EVER:
                await ended
            else:
                await asyncio.wait((ended,), timeout=timeout)
        finally:
            watching.users -= 1
            self._untell(wake)

    def __repr__(self) -> str:
        state = "under way" if not self._ended else "has failed" if self._error else "has ended"
        return f"<Transfer with {self.peer}: {self._what}: {state}>"


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
