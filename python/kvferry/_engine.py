"""An engine of the native library, as the public classes use it.

The way of a blocking transfer: segment() gives the peer's id, from the cache after the first time; transfer() enters
the library once, which submits, waits without the GIL, and frees. What is left when it returns before the end, at a
timeout or because Python wants to run a signal handler, is ended before transfer() returns or raises.
"""

from __future__ import annotations

import functools
import math
import time
from ctypes import byref, c_int, c_uint64, c_void_p, create_string_buffer
from typing import Callable, Union

from kvferry import _log
from kvferry._bindings import (
    INVALID_BATCH,
    KVFERRY_ERR_IN_USE,
    KVFERRY_ERR_INTERRUPTED,
    KVFERRY_ERR_TIMED_OUT,
    Functions,
    buffer_entry_t,
    kvferry_batch_status_t,
    notify_msg_t,
)
from kvferry._ffi import U64Array, c_string, python_string, u64_array
from kvferry._library import load
from kvferry._managed import Managed

Array = Union[int, bytes]  # the address of an array of uint64_t, or the array

# A signal that comes just before a wait does not end it: no single wait is longer than this, in seconds.
LONGEST_WAIT = 0.5
LONGEST_WAIT_MS = int(LONGEST_WAIT * 1000)
UNFINISHED = (KVFERRY_ERR_INTERRUPTED, KVFERRY_ERR_TIMED_OUT)

Seconds = Callable[[], float]

_in_use: list[object] = []  # memory of engines that were closed while something was stuck: it is never given back


def _nothing() -> float:
    return 0.0


class EngineError(RuntimeError):
    """An engine cannot be made; the text says why."""


class Engine(Managed):
    """One engine. Any thread may call it, also while another one closes it.

    A time limit is timeout plus what more() returns, in seconds. more() takes a while for a large batch: it is called
    only where it makes a difference, or once the bytes are on their way.

    Functions that return a code return 0 for success and something negative for failure; last_error() then has the
    calling thread's reason.
    """

    def __init__(self, name: str, metadata: str, transport: str | None, memory: object) -> None:
        """Make it under that name. transport is to be installed alone; None takes the best there is. memory is kept
        until the engine has ended. EngineError says why it cannot be made."""
        self._functions = functions = load()
        install = 0 if transport else 1
        handle = functions.createTransferEngine(c_string(metadata, "metadata"), c_string(name, "name"), b"", 0, install)
        if not handle:
            raise EngineError(self.last_error())
        super().__init__(handle, functools.partial(_destroy, functions, memory))
        if transport and not functions.installTransport(handle, c_string(transport, "transport"), None):
            reason = self.last_error()
            self.close()
            raise EngineError(reason)
        self._segments: dict[str, int] = {}
        self._deadlines: dict[int, float] = {}  # of the batches that submit() made, by time.monotonic()

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

    def register(self, address: int, length: int, location: str = "*") -> int:
        return self._functions.registerLocalMemory(self.handle, address, length, c_string(location, "location"), 1)

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

    def first_buffer(self, name: str) -> int:
        return self._functions.kvferry_first_buffer(self.handle, c_string(name, "segment name"))

    def probe(self, name: str) -> int:
        return self._functions.kvferry_probe(self.handle, c_string(name, "segment name"))

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
        functions, handle = self._functions, self.handle
        batch = c_uint64(INVALID_BATCH)
        message = None if notify is None else byref(notify)
        deadline = time.monotonic() + timeout
        try:
            code = functions.kvferry_transfer_sync(
                handle,
                opcode,
                segment,
                local,
                remote,
                lengths,
                count,
                message,
                LONGEST_WAIT_MS if timeout >= LONGEST_WAIT else _milliseconds(timeout),
                byref(batch),
            )
            if code in UNFINISHED:
                left = deadline + more() - time.monotonic()
                code = _patiently(left, lambda ms: functions.kvferry_batch_wait(handle, batch.value, ms))
            return code
        finally:
            if batch.value != INVALID_BATCH:
                self._discard(batch.value)

    def submit(
        self,
        opcode: int,
        segment: int,
        local: Array,
        remote: Array,
        lengths: Array,
        count: int,
        timeout: float,
        more: Seconds = _nothing,
    ) -> int:
        """Start moving count blocks. The id of the batch, whose timeout runs from now, or 0."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit(
            self.handle, opcode, segment, local, remote, lengths, count, None, byref(batch)
        )
        if code != 0:
            return 0
        deadline = time.monotonic() + timeout
        self._deadlines[batch.value] = deadline + more()
        return batch.value

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
        if self._deadlines.pop(batch, None) is not None:
            self._discard(batch)

    def _discard(self, batch: int) -> None:
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


def notification(name: str, text: str) -> notify_msg_t:
    """A message as transfer() takes it. ValueError for a NUL in it."""
    return notify_msg_t(c_string(name, "notification name"), c_string(text, "notification text"))


def _destroy(functions: Functions, memory: object, handle: int) -> None:
    """End the engine; its memory may go afterwards, unless something is stuck that may use it still."""
    if functions.kvferry_destroy(handle) == KVFERRY_ERR_IN_USE:
        _in_use.append(memory)
        _log.error("an engine was closed: %s", python_string(functions.kvferry_last_error()))


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
