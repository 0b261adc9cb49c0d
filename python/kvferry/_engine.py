"""An engine of the native library, as the public classes use it.

The way of a blocking transfer:

1. segment() gives the peer's id: after the first time from a cache.
2. transfer() enters the library once. The library submits the transfer, waits without the GIL, and frees the batch.
3. The library returns before the transfer has ended when Python has to run a signal handler, or after half a second.
   Then transfer() waits on.
4. A transfer that has not ended at its time limit, or when a signal handler raises, is ended before transfer() returns.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from ctypes import byref, c_uint64, c_void_p, create_string_buffer
from typing import Any, Callable, Protocol

from kvferry import stats
from kvferry._access import READ_WRITE
from kvferry._arrays import Array, Blocks, Pages
from kvferry._batches import Batches
from kvferry._bindings import INVALID_BATCH, KVFERRY_ERR_TIMED_OUT, buffer_entry_t, notify_msg_t
from kvferry._calls import background_call
from kvferry._ending import Ending
from kvferry._errors import EngineError
from kvferry._ffi import U64Array, c_string, last_error, python_string, u64_array
from kvferry._library import load
from kvferry._managed import Managed
from kvferry._messages import take_notifications
from kvferry._texts import Description, describe
from kvferry._waiting import (
    LONGEST_WAIT,
    LONGEST_WAIT_MS,
    UNFINISHED,
    ExtraTime,
    given_up,
    milliseconds,
    no_time,
    wait_in_steps,
)
from kvferry.stats import Stats

DEFAULT_TIMEOUT = 30.0  # seconds: MC_TRANSFER_TIMEOUT where it is not set


class Follower(Protocol):
    """An object that looks at an engine's batches, and does so once more before the engine is closed."""

    def before_close(self) -> None: ...


class Engine(Managed):
    """One engine. Any thread may call it, also while another one closes it.

    Functions that return a code return 0 for success and a negative number for failure; last_error() then has the
    calling thread's reason. Texts that C cannot have are a TextError.

    A time limit is timeout plus what extra() returns, in seconds. extra() takes long for a large batch: it is called
    only where it makes a difference, or once the bytes are on their way.
    """

    def __init__(
        self,
        name: str,
        metadata: str,
        transport: str | None,
        memory: object,
        timeout: float = DEFAULT_TIMEOUT,
        settings: Mapping[str, str] | None = None,
        limit: str | None = None,
    ) -> None:
        """Make an engine of that name.

        transport is the only one to be installed; None leaves the choice to the library. memory is kept until the
        engine has ended. settings take precedence over the environment. EngineError says why the engine cannot be made,
        or that it was not made within timeout, in seconds; limit is the name of that limit, None for the setting's.
        """
        self._segments: dict[str, int] = {}
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._following = threading.RLock()  # for these
        self._functions = functions = load()
        own = b"".join(
            c_string(key, "the name of a setting") + b"=" + c_string(str(value), key) + b"\0"
            for key, value in (settings or {}).items()
        )
        names = c_string(metadata, "metadata"), c_string(name, "name"), c_string(transport or "", "transport")
        arguments = *names, own, len(own)
        handle = c_uint64()
        try:
            code = background_call(functions, functions.kvferry_start_engine_with, arguments, timeout, handle)
            if code == KVFERRY_ERR_TIMED_OUT:
                late = given_up(timeout, limit)
                raise EngineError(f"{late}: the metadata store, or a device's library, has not answered")
            if code != 0:
                raise EngineError(self.last_error())
            self._ending = Ending(self, functions, handle.value, memory)
            super().__init__(self._ending.run)
        except BaseException:
            if handle.value:
                Ending(self, functions, handle.value, memory).run()
            raise
        self.handle = handle.value
        self.batches = Batches(functions, self.handle)

    def close(self) -> None:
        """End the engine. Calls that are under way with it return an error; later ones do so at once."""
        with self._following:
            followers = list(self._followers)
        for follower in followers:
            follower.before_close()
        super().close()

    @property
    def stuck(self) -> bool | None:
        """None until the engine has ended. Then whether something is stuck that may still use memory."""
        return self._ending.stuck

    def follow(self, follower: Follower) -> None:
        """Have a follower called before the engine is closed, as long as something refers to the follower."""
        with self._following:
            self._followers.add(follower)

    def unfollow(self, follower: Follower) -> None:
        """Undo follow()."""
        with self._following:
            self._followers.discard(follower)

    def last_error(self) -> str:
        """Why the calling thread's latest failed call failed."""
        return last_error(self._functions)

    def name(self) -> str:
        """Where peers reach this engine, host:port; in P2P mode they open it by this name. "" once it is closed."""
        text = create_string_buffer(512)
        self._functions.getLocalIpAndPort(self.handle, text, len(text))
        return python_string(text.value)

    def timeout(self) -> float:
        """The time limit of a blocking call without the time for its bytes, in seconds."""
        return self._functions.kvferry_transfer_timeout_ms(self.handle) / 1000

    def rpc_port(self) -> int:
        """The port on which peers ask for this engine's memory, or a negative number."""
        return self._functions.kvferry_rpc_port(self.handle)

    def stats(self) -> Stats:
        """Describe what the engine has done since it was made, and does now. RuntimeError once it is closed.

        It takes less than a millisecond, and disturbs no transfer.
        """
        found = stats.read(self._functions, self.handle)
        if found is None:
            raise RuntimeError(self.last_error())
        return found

    # Memory

    def register(self, address: int, length: int, location: str = "*", access: int = READ_WRITE) -> int:
        """Register memory. access is what peers may do with it, as flags of kvferry_register."""
        return self._register((buffer_entry_t * 1)(buffer_entry_t(address, length)), location, access)

    def unregister(self, address: int) -> int:
        """End the registration that starts at an address."""
        return self._functions.unregisterLocalMemory(self.handle, address)

    def register_batch(
        self, addresses: U64Array, lengths: U64Array, location: str = "*", access: int = READ_WRITE
    ) -> int:
        """Register all of the ranges or none. access as for register()."""
        pairs = map(buffer_entry_t, addresses.items(), lengths.items())
        return self._register((buffer_entry_t * addresses.length)(*pairs), location, access)

    def _register(self, ranges: Any, location: str, access: int) -> int:
        place = c_string(location, "location")
        return self._functions.kvferry_register(self.handle, ranges, len(ranges), place, access)

    def unregister_batch(self, addresses: U64Array) -> int:
        """End the registrations that start at these addresses, as many as there are."""
        entries = (c_void_p * addresses.length)(*addresses.items())
        return self._functions.unregisterLocalMemoryBatch(self.handle, entries, addresses.length)

    def copy(self, destination: Array, source: Array, length: int) -> int:
        """Copy within this process; a negative code when not all of it is mapped."""
        return self._functions.kvferry_copy(destination, source, length)

    # Peers

    def segment(self, name: str, timeout: float, extra: ExtraTime = no_time) -> int:
        """The id of a peer's segment, or a negative code, within the time limit."""
        segment = self._segments.get(name)
        if segment is None:
            encoded = c_string(name, "segment name")
            segment = wait_in_steps(
                timeout + extra(), lambda ms: self._functions.kvferry_open_segment(self.handle, encoded, ms)
            )
            if segment >= 0:
                self._segments[name] = segment
        return segment

    def first_buffer(self, name: str, timeout: float) -> tuple[int, int]:
        """A code, and the address at which a peer's first buffer begins: 0 where the peer has none."""
        return self._ask(self._functions.kvferry_start_first_buffer, name, timeout)

    def probe(self, name: str, timeout: float) -> int:
        """0 when the owner of a segment answers, or a code."""
        return self._ask(self._functions.kvferry_start_probe, name, timeout)[0]

    def describe(self, name: str, timeout: float) -> Description:
        """What a peer offers now, and where it is. DescribeError when it does not answer within timeout, in seconds."""
        return describe(self._functions, self.handle, name, timeout)

    def _ask(self, start: Callable[..., int | None], name: str, timeout: float) -> tuple[int, int]:
        """A question to a peer: its code, and its result."""
        result = c_uint64()
        arguments = self.handle, c_string(name, "segment name")
        return background_call(self._functions, start, arguments, timeout, result), result.value

    def notifies(self) -> list[tuple[str, str]]:
        """Take the names and texts of the messages that were received, oldest first."""
        return take_notifications(self._functions, self.handle)

    # Blocking transfers

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
        extra: ExtraTime = no_time,
    ) -> int:
        """Move count blocks and wait. When it returns, or raises, nothing touches their memory any more."""
        message = None if notify is None else byref(notify)
        arguments = self.handle, opcode, segment, local, remote, lengths, count, message
        return self._complete(self._functions.kvferry_transfer_sync, arguments, timeout, extra)

    def transfer_pages(
        self, opcode: int, segment: int, pages: Pages, max_batch: int, timeout: float, extra: ExtraTime = no_time
    ) -> int:
        """transfer() of all ranges of the pages. At most max_batch of them are under way at a time; 0 is no limit."""
        arguments = self.handle, opcode, segment, *pages.arguments(), max_batch
        return self._complete(self._functions.kvferry_transfer_pages, arguments, timeout, extra)

    def transfer_plan(
        self, opcode: int, plan: int, transfers: Sequence[tuple[int, int]], timeout: float, extra: ExtraTime = no_time
    ) -> int:
        """transfer() of all ranges of some transfers of a plan, given by its handle. They run at the same time. Each is
        a segment and the index of a transfer."""
        if len(transfers) == 1:
            ((segment, index),) = transfers
            only = self.handle, opcode, segment, plan, index, 0
            return self._complete(self._functions.kvferry_transfer_plan, only, timeout, extra)
        batches = [c_uint64(INVALID_BATCH) for _ in transfers]
        deadline = time.monotonic() + timeout + extra()
        try:
            for (segment, index), batch in zip(transfers, batches):
                arguments = self.handle, opcode, segment, plan, index, 0, byref(batch)
                code = self._functions.kvferry_submit_plan(*arguments)
                if code != 0:
                    return code
            ids = u64_array([batch.value for batch in batches], "batch ids")
            return self.batches.wait_for_all(ids, deadline - time.monotonic())
        finally:
            for batch in batches:
                if batch.value != INVALID_BATCH:
                    self.batches.discard(batch.value)

    def _complete(
        self, transfer: Callable[..., int], arguments: tuple[Any, ...], timeout: float, extra: ExtraTime
    ) -> int:
        """Call transfer(*arguments, milliseconds, address of a batch id): it submits and waits. Steps 2 to 4 above."""
        batch = c_uint64(INVALID_BATCH)
        deadline = time.monotonic() + timeout
        try:
            wait = LONGEST_WAIT_MS if timeout >= LONGEST_WAIT else milliseconds(timeout)
            code = transfer(*arguments, wait, byref(batch))
            if code in UNFINISHED:
                left = deadline + extra() - time.monotonic()
                code = self.batches.wait_for(batch.value, left)
            return code
        finally:
            if batch.value != INVALID_BATCH:
                self.batches.discard(batch.value)

    # Transfers in the background

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
        """Start moving count blocks. The id of one of the batches, or 0. Its time limit is timeout, and per_byte for
        each of its bytes, in seconds from now."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit(
            self.handle, opcode, segment, local, remote, lengths, count, None, byref(batch)
        )
        return self.batches.add(batch.value, timeout, per_byte) if code == 0 else 0

    def submit_pages(
        self, opcode: int, segment: int, pages: Pages, max_batch: int, timeout: float, per_byte: float = 0
    ) -> int:
        """submit() of all ranges of the pages. At most max_batch of them are under way at a time; 0 is no limit."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit_pages(
            self.handle, opcode, segment, *pages.arguments(), max_batch, byref(batch)
        )
        return self.batches.add(batch.value, timeout + per_byte * pages.bytes) if code == 0 else 0

    def submit_scatter(self, opcode: int, name: str, blocks: Blocks) -> int:
        """Start moving blocks of regions with the peer of that name, which is opened in the background. The id of a
        batch, or 0. The caller discards the batch."""
        batch = c_uint64(INVALID_BATCH)
        code = self._functions.kvferry_submit_scatter(
            self.handle, opcode, c_string(name, "segment name"), *blocks.arguments(), byref(batch)
        )
        return batch.value if code == 0 else 0

    def order(
        self, kind: str, stream: int, opcode: int, segment: int, local: Array, remote: Array, lengths: Array, count: int
    ) -> int:
        """Move count blocks in the order of a stream of that kind of device: after the work that is in the stream by
        now, and before work that comes later. A code; also that of an earlier transfer that failed, and then nothing is
        queued."""
        return self._functions.kvferry_transfer_on_stream(
            self.handle, c_string(kind, "kind"), stream, opcode, segment, local, remote, lengths, count
        )
