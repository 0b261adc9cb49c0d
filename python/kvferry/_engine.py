"""An engine of the native library, as the public classes use it.

The way of a blocking transfer: segment() gives the peer's id, from the cache after the first time; transfer() enters
the library once, which submits, waits without the GIL, and frees. What is left when it returns before the end, at a
timeout or because Python wants to run a signal handler, is ended before transfer() returns or raises.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from ctypes import byref, c_int, c_uint64, c_void_p, create_string_buffer
from typing import Any, Callable, Protocol

from kvferry import _log
from kvferry._arrays import Array, Blocks, Pages
from kvferry._bindings import (
    INVALID_BATCH,
    KVFERRY_ERR_IN_USE,
    KVFERRY_ERR_INTERRUPTED,
    KVFERRY_ERR_TIMED_OUT,
    buffer_entry_t,
    kvferry_batch_status_t,
    notify_msg_t,
)
from kvferry._ending import Ending
from kvferry._ffi import U64Array, c_string, python_string, u64_array
from kvferry._library import load
from kvferry._managed import Managed

# A signal that comes just before a wait does not end it: no single wait is longer than this, in seconds.
LONGEST_WAIT = 0.5
LONGEST_WAIT_MS = int(LONGEST_WAIT * 1000)
DEFAULT_TIMEOUT = 30.0  # seconds: MC_TRANSFER_TIMEOUT where it is not set
UNFINISHED = (KVFERRY_ERR_INTERRUPTED, KVFERRY_ERR_TIMED_OUT)

Seconds = Callable[[], float]


def _nothing() -> float:
    return 0.0


class EngineError(RuntimeError):
    """An engine cannot be made; the text says why."""


class Follower(Protocol):
    """What looks at an engine's batches, and does so once more before the engine is closed."""

    def before_close(self) -> None: ...


class Engine(Managed):
    """One engine. Any thread may call it, also while another one closes it.

    A time limit is timeout plus what more() returns, in seconds. more() takes a while for a large batch: it is called
    only where it makes a difference, or once the bytes are on their way.

    Functions that return a code return 0 for success and something negative for failure; last_error() then has the
    calling thread's reason.
    """

    def __init__(
        self, name: str, metadata: str, transport: str | None, memory: object, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Make it under that name. transport is to be installed alone; None takes the best there is. memory is kept
        until the engine has ended. EngineError says why it cannot be made, or not within timeout, in seconds."""
        self._segments: dict[str, int] = {}
        self._deadlines: dict[int, float] = {}  # of the batches that submit() made, by time.monotonic()
        self._limits: dict[int, float] = {}  # how long after their start those are
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._following = threading.RLock()  # for these
        self._functions = functions = load()
        arguments = c_string(metadata, "metadata"), c_string(name, "name"), c_string(transport or "", "transport")
        calls: list[int | None] = []
        handle = c_uint64()
        try:
            # A signal handler that raises runs after a call of C, before its result is assigned. Not within extend().
            calls.extend(map(functions.kvferry_start_engine, *([argument] for argument in arguments)))
            code = self._await_call(calls[0], timeout, handle)
            if code == KVFERRY_ERR_TIMED_OUT:
                raise EngineError(f"{gave_up(timeout)}: the metadata store, or a device's library, has not answered")
            if code != 0:
                raise EngineError(self.last_error())
            self._ending = Ending(self, functions, handle.value, memory)
            super().__init__(handle.value, self._ending.run)
        except BaseException:
            if calls and calls[0] is not None:
                functions.kvferry_call_abandon(calls[0])
            if handle.value:
                Ending(self, functions, handle.value, memory).run()
            raise

    def close(self) -> None:
        """End the engine. Calls that are under way with it return an error; later ones do so at once."""
        with self._following:
            followers = list(self._followers)
        for follower in followers:
            follower.before_close()
        super().close()

    @property
    def stuck(self) -> bool | None:
        """None until the engine has ended. Then whether something is stuck that may use memory still."""
        return self._ending.stuck

    def follow(self, follower: Follower) -> None:
        """Have a follower called before the engine is closed, while somebody refers to it."""
        with self._following:
            self._followers.add(follower)

    def unfollow(self, follower: Follower) -> None:
        """Undo follow()."""
        with self._following:
            self._followers.discard(follower)

    def last_error(self) -> str:
        """Why the calling thread's latest failed call failed."""
        return python_string(self._functions.kvferry_last_error())

    def name(self) -> str:
        """Where peers reach this engine, host:port: in P2P mode what they open. "" once the engine is closed."""
        text = create_string_buffer(512)
        self._functions.getLocalIpAndPort(self.handle, text, len(text))
        return python_string(text.value)

    def rpc_port(self) -> int:
        """The port that peers ask for this engine's memory, or something negative."""
        return self._functions.kvferry_rpc_port(self.handle)

    # Memory

    def register(self, address: int, length: int, location: str = "*", remote: bool = True) -> int:
        """Make memory known. remote is whether peers may read and write it."""
        place = c_string(location, "location")
        return self._functions.registerLocalMemory(self.handle, address, length, place, int(remote))

    def unregister(self, address: int) -> int:
        return self._functions.unregisterLocalMemory(self.handle, address)

    def register_batch(self, addresses: U64Array, lengths: U64Array, location: str) -> int:
        pairs = map(buffer_entry_t, addresses.items(), lengths.items())
        entries = (buffer_entry_t * addresses.length)(*pairs)
        place = c_string(location, "location")
        return self._functions.registerLocalMemoryBatch(self.handle, entries, addresses.length, place)

    def unregister_batch(self, addresses: U64Array) -> int:
        entries = (c_void_p * addresses.length)(*addresses.items())
        return self._functions.unregisterLocalMemoryBatch(self.handle, entries, addresses.length)

    # Segments

    def segment(self, name: str, timeout: float, more: Seconds = _nothing) -> int:
        """The id of a peer's segment, or something negative, within the timeout."""
        segment = self._segments.get(name)
        if segment is None:
            encoded = c_string(name, "segment name")
            segment = _patiently(
                timeout + more(), lambda ms: self._functions.kvferry_open_segment(self.handle, encoded, ms)
            )
            if segment >= 0:
                self._segments[name] = segment
        return segment

    def first_buffer(self, name: str, timeout: float) -> tuple[int, int]:
        """A code, and the address at which the first buffer of a peer begins: 0 where it has none."""
        call = self._functions.kvferry_start_first_buffer(self.handle, c_string(name, "segment name"))
        return self._end_call(call, timeout)

    def probe(self, name: str, timeout: float) -> int:
        """0 when the owner of a segment answers, or a code."""
        call = self._functions.kvferry_start_probe(self.handle, c_string(name, "segment name"))
        return self._end_call(call, timeout)[0]

    def _end_call(self, call: int | None, timeout: float) -> tuple[int, int]:
        """Wait for a call that was started. What it comes to: a code, and its result. One that is left before that, at
        the timeout or because a signal handler raises, is abandoned."""
        result, ended = c_uint64(), False
        try:
            code = self._await_call(call, timeout, result)
            ended = code not in UNFINISHED
            return code, result.value
        finally:
            if not ended and call is not None:
                self._functions.kvferry_call_abandon(call)

    def _await_call(self, call: int | None, timeout: float, result: c_uint64) -> int:
        """Wait for a call that was started, or failed to: a code. The result is stored together with the call's end."""
        if call is None:
            return -1
        return _patiently(timeout, lambda ms: self._functions.kvferry_call_wait(call, ms, byref(result)))

    # Bytes

    def copy(self, destination: Array, source: Array, length: int) -> int:
        """Copy between two places of this process; negative when one is not mapped."""
        return self._functions.kvferry_copy(destination, source, length)

    # Transfers

    def transfer(
        self,
        opcode: int,
        segment: int,
        local: Array,
        remote: Array,
        lengths: Array,
        count: int,
        notify: notify_msg_t | None,
        timeout: float,
        more: Seconds = _nothing,
    ) -> int:
        """Move count blocks and wait. When it returns, or raises, nothing touches their memory any more."""
        transfer, handle = self._functions.kvferry_transfer_sync, self.handle
        message = None if notify is None else byref(notify)
        return self._complete(
            lambda ms, batch: transfer(handle, opcode, segment, local, remote, lengths, count, message, ms, batch),
            timeout,
            more,
        )

    def transfer_pages(
        self, opcode: int, segment: int, pages: Pages, max_batch: int, timeout: float, more: Seconds = _nothing
    ) -> int:
        """transfer() of all ranges that pages describes; max_batch above 0 has no more of them under way at a time."""
        transfer, handle = self._functions.kvferry_transfer_pages, self.handle
        arguments = pages.arguments()
        return self._complete(
            lambda ms, batch: transfer(handle, opcode, segment, *arguments, max_batch, ms, batch), timeout, more
        )

    def _complete(self, transfer: Callable[[int, Any], int], timeout: float, more: Seconds) -> int:
        """Call transfer(milliseconds, where to put a batch id), which submits and waits; wait on where it has not come
        to an end, and end what is left after that."""
        batch = c_uint64(INVALID_BATCH)
        deadline = time.monotonic() + timeout
        try:
            code = transfer(LONGEST_WAIT_MS if timeout >= LONGEST_WAIT else _milliseconds(timeout), byref(batch))
            if code in UNFINISHED:
                left = deadline + more() - time.monotonic()
                code = self.wait_for(batch.value, left)
            return code
        finally:
            if batch.value != INVALID_BATCH:
                self.discard(batch.value)

    def wait_for(self, batch: int, timeout: float) -> int:
        """Wait for a batch; the code of kvferry_batch_wait."""
        return _patiently(timeout, lambda ms: self._functions.kvferry_batch_wait(self.handle, batch, ms))

    def submit(
        self,
        opcode: int,
        segment: int,
        local: Array,
        remote: Array,
        lengths: Array,
        count: int,
        timeout: float,
        per_byte: float = 0,
    ) -> int:
        """Start moving count blocks. The id of the batch, or 0. Its time limit, from now, is timeout plus per_byte for
        each of its bytes, in seconds."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit(
            self.handle, opcode, segment, local, remote, lengths, count, None, byref(batch)
        )
        return self._limited(batch.value, timeout, per_byte) if code == 0 else 0

    def submit_pages(
        self, opcode: int, segment: int, pages: Pages, max_batch: int, timeout: float, per_byte: float = 0
    ) -> int:
        """submit() of all ranges that pages describes; max_batch above 0 has no more of them under way at a time."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit_pages(
            self.handle, opcode, segment, *pages.arguments(), max_batch, byref(batch)
        )
        return self._limited(batch.value, timeout + per_byte * pages.bytes, 0) if code == 0 else 0

    def _limited(self, batch: int, timeout: float, per_byte: float) -> int:
        """Note how long a batch may take that was just submitted, and return its id."""
        submitted = time.monotonic()
        size = self._functions.kvferry_batch_bytes(self.handle, batch) if per_byte else 0
        self._limits[batch] = limit = timeout + size * per_byte
        self._deadlines[batch] = submitted + limit
        return batch

    def submit_scatter(self, opcode: int, name: str, blocks: Blocks) -> int:
        """Start moving blocks of regions with the peer of that name, which is opened in the background. The id of a
        batch, which the caller discards, or 0."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit_scatter(
            self.handle, opcode, c_string(name, "segment name"), *blocks.arguments(), byref(batch)
        )
        return batch.value if code == 0 else 0

    def cancel(self, batch: int) -> None:
        """Give up what is unfinished of a batch. It ends when nothing touches its memory any more."""
        self._functions.kvferry_batch_cancel(self.handle, batch)

    def order(
        self, kind: str, stream: int, opcode: int, segment: int, local: Array, remote: Array, lengths: Array, count: int
    ) -> int:
        """Move count blocks in the order of a stream of that kind of device: after what is queued in it by now, and
        before what is queued later. A code, also that of an earlier one that failed: nothing is queued then."""
        return self._functions.kvferry_transfer_on_stream(
            self.handle, c_string(kind, "kind"), stream, opcode, segment, local, remote, lengths, count
        )

    def wait(self, batches: list[int]) -> int:
        """Wait until all of the batches have completed, one has failed, or one's time is over; then free them all."""
        deadlines = {batch: self._deadlines.get(batch, 0.0) for batch in batches}
        try:
            return self._wait(deadlines)
        finally:
            for batch in deadlines:
                self._free(batch)

    def _wait(self, deadlines: dict[int, float]) -> int:
        while deadlines:
            code = self._wait_for_all(list(deadlines), min(deadlines.values()) - time.monotonic())
            if code != KVFERRY_ERR_TIMED_OUT:
                return code
            # What completed in time no longer counts.
            deadlines = {batch: deadline for batch, deadline in deadlines.items() if self.state(batch) == 0}
            if time.monotonic() >= min(deadlines.values(), default=math.inf):
                return code
        return 0

    def _wait_for_all(self, batches: list[int], timeout: float) -> int:
        ids = u64_array(batches, "batch ids")
        return _patiently(
            timeout, lambda ms: self._functions.kvferry_batches_wait(self.handle, ids.address, ids.length, ms)
        )

    def limit(self, batches: list[int]) -> float:
        """The time that these batches were given, in seconds: the least of them."""
        return min((self._limits[batch] for batch in batches if batch in self._limits), default=0.0)

    def has_batch(self, batch: int) -> bool:
        """Whether submit() made the batch and nobody has freed it."""
        return batch in self._deadlines

    def state(self, batch: int) -> int:
        """0 while the batch is under way, 1 when it has completed, -2 when it failed by MC_SLICE_TIMEOUT alone, -1 when
        it failed otherwise or is unknown."""
        status = kvferry_batch_status_t()
        if not self.has_batch(batch) or self._functions.kvferry_batch_status(self.handle, batch, byref(status)) != 0:
            return -1
        if status.completed + status.failed < status.tasks:
            return 0
        if status.failed == 0:
            return 1
        return -2 if status.failed == status.timed_out else -1

    def check(self, batch: int) -> int:
        """state(), after which a batch that completed or failed is freed."""
        state = self.state(batch)
        if state in (1, -1):
            self._free(batch)
        return state

    def _free(self, batch: int) -> None:
        """End and free a batch that submit() made; others are left alone."""
        self._limits.pop(batch, None)
        if self._deadlines.pop(batch, None) is not None:
            self.discard(batch)

    def discard(self, batch: int) -> None:
        """End a batch. The log says so where its memory is in use nevertheless."""
        if self._functions.kvferry_batch_discard(self.handle, batch) == KVFERRY_ERR_IN_USE:
            _log.error("%s", self.last_error())

    # Messages

    def notifies(self) -> list[tuple[str, str]]:
        """Take the names and texts of the messages received, oldest first."""
        count = c_int(0)
        messages = self._functions.getNotifsFromEngine(self.handle, byref(count))
        try:
            return [(python_string(m.name), python_string(m.msg)) for m in messages[: count.value]]
        finally:
            self._functions.freeNotifsMsgBuf(messages, count.value)


def notification(name: str | bytes, text: str | bytes) -> notify_msg_t:
    """A message as transfer() takes it. ValueError for a NUL in it. Bytes that are not UTF-8 arrive as U+FFFD."""
    return notify_msg_t(
        c_string(_as_text(name), "the notification name"), c_string(_as_text(text), "the notification text")
    )


def _as_text(message: str | bytes) -> str:
    return message.decode("utf-8", "surrogateescape") if isinstance(message, bytes) else message


def gave_up(seconds: float) -> str:
    """What a call says that has waited as long as it may."""
    mooncakes, ascends = "MC_TRANSFER_TIMEOUT", "ASCEND_TRANSFER_TIMEOUT"
    setting = ascends if ascends in os.environ and mooncakes not in os.environ else mooncakes
    return f"given up after {round(seconds, 1):g} s ({setting}, and 1 s for each GiB)"


def _patiently(timeout: float, wait: Callable[[int], int]) -> int:
    """Call wait(milliseconds) until it has an answer or the time is over, letting pending signal handlers run, and
    raise, in between."""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        code = wait(_milliseconds(min(left, LONGEST_WAIT)))
        if code not in UNFINISHED or (code == KVFERRY_ERR_TIMED_OUT and left <= LONGEST_WAIT):
            return code


def _milliseconds(seconds: float) -> int:
    return min(max(0, math.ceil(seconds * 1000)), 2**63 - 1)
