"""The ends of an engine's transfers, and who is told of them.

1. The engine keeps a Flight for each transfer that is under way: its batch, and the objects whose memory it moves. The
   memory therefore outlives the program's references to it, until nothing touches it any more.
2. The native library announces the end of each batch at one descriptor. Each event loop that has waiting tasks watches
   a duplicate of it. Callbacks that belong to no loop are called by one thread, which is started when the first one is
   given.
3. The first to see the descriptor takes what has ended (drain), and settles it: the Transfer gets its result, and its
   waiters are woken, each in its own loop. A thread in Transfer.result() waits for its batch alone, and settles it.
4. When the engine is closed, the descriptor is readable for ever: loops stop watching it, and the thread ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import weakref
from collections import deque
from contextvars import Context
from ctypes import byref, c_uint64, sizeof
from typing import TYPE_CHECKING, Any, Callable

from kvferry import _log
from kvferry._bindings import INVALID_BATCH, KVFERRY_OK, Functions, kvferry_transfer_t
from kvferry._errors import Error
from kvferry._ffi import last_error

if TYPE_CHECKING:
    from kvferry._buffers import Buffer
    from kvferry._transfers import Transfer

AT_ONCE = 256  # announcements that one call of the library takes
LONGEST_CALLBACK = 5.0  # seconds for which close() waits for a callback
MANY = 64  # flights from which on a new one first looks for others that have ended

Wake = Callable[[], object]  # may be called on any thread; must not block


def _nothing() -> None:
    return None


class Flight:
    """A transfer that is under way, whether the program still has its object or not."""

    __slots__ = ("batch", "keep", "limit", "transfer", "waited_for")

    def __init__(self, keep: Any, limit: str = "") -> None:
        self.batch = c_uint64(INVALID_BATCH)
        self.limit = limit  # the name of its time limit
        self.keep = keep  # objects whose memory is in use; None once it has ended
        self.transfer: Callable[[], Transfer | None] = _nothing  # the program's object, if it has one
        self.waited_for: Transfer | None = None  # that object, as long as somebody is to be told of the end


class Kept:
    """What an engine's transfers and registrations use. The end of the engine lets go of it, and not before."""

    def __init__(self) -> None:
        self.starting: set[Flight] = set()
        self.flights: dict[int, Flight] = {}  # by the ids of their batches
        self.registered: dict[int, Buffer] = {}  # memory of regions, by address
        self.left: list[Flight] = []  # with memory that something may still use

    def release(self) -> None:
        """Let go of all memory: the engine has ended, and nothing is stuck."""
        for flight in self.left:
            flight.keep = None
        self.left.clear()
        self.registered.clear()


class Completions:
    """The ends of the transfers of one engine. Any thread may call it."""

    def __init__(self, functions: Functions, engine: int, kept: Kept) -> None:
        self._functions = functions
        self._engine = engine
        self._kept = kept
        self.lock = threading.RLock()  # for what follows, the flights, and the results of transfers
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()
        self._thread: _Thread | None = None
        self._many = MANY
        self._early: set[int] = set()  # batches that have ended before their flights were in the table
        self._listeners: list[Wake] = []  # to be called when messages arrive
        self.ended = False  # the engine has ended, or is about to: nothing is taken from it any more
        self.gone = False  # the engine has ended

    def start(self, what: kvferry_transfer_t, flight: Flight) -> int:
        """Start a transfer; a code. Its memory is kept from here on."""
        self._drain_if_many()
        kept = self._kept
        kept.starting.add(flight)
        try:
            code = self._functions.kvferry_start(self._engine, byref(what), sizeof(what), byref(flight.batch))
            if code == KVFERRY_OK:
                with self.lock:
                    kept.flights[flight.batch.value] = flight
                    ended = flight.batch.value in self._early
                if ended:
                    self.settle(flight)
            return code
        except BaseException:  # Ctrl-C: nobody has the transfer
            if flight.batch.value != INVALID_BATCH:
                if self._functions.kvferry_batch_discard(self._engine, flight.batch.value) != KVFERRY_OK:
                    kept.left.append(flight)  # something stuck may still use its memory
                kept.flights.pop(flight.batch.value, None)
            raise
        finally:
            with self.lock:
                kept.starting.discard(flight)
                if not kept.starting:
                    self._early.clear()

    def drain(self) -> None:
        """Settle what has ended, and wake those who wait for messages if some have arrived."""
        room = (c_uint64 * AT_ONCE)()
        count = AT_ONCE
        while count == AT_ONCE and not self.ended:
            count = self._functions.kvferry_completions_next(self._engine, room, AT_ONCE)
            if count < 0:
                self.ended = self.gone = True
            for batch in room[: max(count, 0)]:
                if batch == INVALID_BATCH:
                    self._messages_arrived()
                else:
                    self._batch_ended(batch)

    def _batch_ended(self, batch: int) -> None:
        with self.lock:
            flight = self._kept.flights.get(batch)
            if flight is None and self._kept.starting:
                self._early.add(batch)
        if flight is not None:  # result() may have settled it before
            self.settle(flight)

    def _drain_if_many(self) -> None:
        """Let go of what transfers used that nobody waits for, when there are many."""
        if len(self._kept.flights) >= self._many:
            self.drain()
            self._many = max(MANY, 2 * len(self._kept.flights))

    def settle(self, flight: Flight) -> None:
        """Give a transfer whose batch has ended its result, and free the batch. Once it was done it does nothing."""
        with self.lock:
            batch = flight.batch.value
            if self._kept.flights.get(batch) is not flight:
                return
            transfer = flight.transfer()
            told = transfer.settled() if transfer is not None else ()
            flight.waited_for = None
            keep = None
            if self._functions.kvferry_batch_discard(self._engine, batch) == KVFERRY_OK:
                keep, flight.keep = flight.keep, None
            else:  # the engine has ended: release() lets go of it
                self._kept.left.append(flight)
            del self._kept.flights[batch]
        for wake in told:
            wake()
        del keep  # without the lock: the end of the program's objects may be code that waits for other threads

    def _messages_arrived(self) -> None:
        with self.lock:
            told, self._listeners = self._listeners, []
        for wake in told:
            wake()

    # Waiting

    def on_message(self, wake: Wake) -> None:
        """Have wake called once, when the next message arrives or the engine ends."""
        with self.lock:
            if not self.ended:
                self._listeners.append(wake)
                return
        wake()

    def forget(self, wake: Wake) -> None:
        """Undo on_message()."""
        with self.lock, contextlib.suppress(ValueError):
            self._listeners.remove(wake)

    def watch(self, loop: asyncio.AbstractEventLoop) -> _Loop:
        """Have the calling thread's loop see what ends, as long as the result has users."""
        with self.lock:
            watching = self._loops.get(loop)
            if watching is None:
                watching = self._loops[loop] = _Loop(self, loop, self._descriptor())
            return watching

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            self._loops.pop(loop, None)

    def thread(self) -> _Thread | None:
        """The thread for callbacks that belong to no loop; it is started where it does not run. None where the engine
        is being closed: close() settles what is left."""
        with self.lock:
            if self._thread is None:
                descriptor = self._descriptor()
                if descriptor is not None:
                    self._thread = _Thread(self, descriptor)
            return self._thread

    def _descriptor(self) -> int | None:
        """A descriptor that is readable when something has ended, or None where the engine is being closed."""
        if self.ended:
            return None
        descriptor = self._functions.kvferry_completions_fd(self._engine)
        if descriptor < 0 and not self.ended:
            raise Error(last_error(self._functions), what="watch transfers")
        return descriptor if descriptor >= 0 else None

    # The end

    def close(self) -> None:
        """Settle all that is left, when the engine has ended, and end the thread. Loops see the end by themselves."""
        with self.lock:
            left = list(self._kept.flights.values())
            thread = self._thread
        for flight in left:
            self.settle(flight)
        self._messages_arrived()
        if thread is not None:
            thread.stop()


def call_soon(
    loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any, context: Context | None = None
) -> None:
    """Have a loop call something, from any thread. A loop that is closed does not."""
    try:
        if asyncio._get_running_loop() is loop:
            loop.call_soon(call, *arguments, context=context)
        else:
            loop.call_soon_threadsafe(call, *arguments, context=context)
    except RuntimeError:
        if not loop.is_closed():
            raise


class _Loop:
    """An event loop that watches the descriptor. Only the loop's thread uses it."""

    def __init__(self, completions: Completions, loop: asyncio.AbstractEventLoop, descriptor: int | None) -> None:
        """Watch from now on; without a descriptor, the engine is being closed, and that wakes those who wait."""
        self._completions = completions
        self._loop = weakref.ref(loop)
        self.users = 0  # that wait for something to end
        if descriptor is None:
            return
        close = weakref.finalize(self, os.close, descriptor)  # also where the loop was closed before
        close.atexit = False  # type: ignore[misc]
        try:
            loop.add_reader(descriptor, self._ready, descriptor, close)
        except NotImplementedError:  # some loops cannot watch descriptors: the thread sees what ends
            completions.thread()

    def _ready(self, descriptor: int, close: Wake) -> None:
        self._completions.drain()
        if self.users == 0 or self._completions.ended:
            # Nobody waits here any more, and the descriptor may be readable for what others wait for.
            loop = self._loop()
            if loop is not None:
                loop.remove_reader(descriptor)
                self._completions.unwatch(loop)
            close()


class _Thread:
    """The thread that calls callbacks which belong to no loop. It ends with the engine, or by stop()."""

    def __init__(self, completions: Completions, descriptor: int) -> None:
        self._completions = completions
        self._descriptor = descriptor
        self._calls: deque[Wake] = deque()
        self._stopped = False
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        weakref.finalize(self, _close_all, descriptor, self._woken, self._wake).atexit = False  # type: ignore[misc]
        # A daemon: Python joins others at interpreter exit before it ends the engines.
        self._thread = threading.Thread(target=self._run, name="kvferry-callbacks", daemon=True)
        self._thread.start()

    def call(self, function: Wake) -> None:
        """Have the thread call a function soon."""
        self._calls.append(function)
        self._wake_up()

    def _wake_up(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the thread has enough to wake it
            os.write(self._wake, b"x")

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        watching = True
        while not self._stopped and not self._completions.gone:
            for descriptor, _ in poll.poll():
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                else:
                    self._completions.drain()
            if watching and self._completions.ended:  # the descriptor stays readable
                poll.unregister(self._descriptor)
                watching = False
            self._call_all()
        self._call_all()

    def _call_all(self) -> None:
        while self._calls:
            function = self._calls.popleft()
            try:
                function()
            except BaseException as e:
                arguments = (type(e), e, e.__traceback__, self._thread)
                threading.excepthook(threading.ExceptHookArgs(arguments))

    def stop(self) -> None:
        """End the thread when it has called all that it was given, and wait for that, for a limited time. A callback
        may call it, too."""
        self._stopped = True
        self._wake_up()
        if threading.current_thread() is not self._thread:
            self._thread.join(LONGEST_CALLBACK)
            if self._thread.is_alive():
                _log.warning("a callback of a transfer has not returned for %g s: close() goes on", LONGEST_CALLBACK)
            else:
                self._call_all()  # what came when the thread had looked for the last time


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
