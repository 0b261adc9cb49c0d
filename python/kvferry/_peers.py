"""Peers: whose memory an engine reads and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ctypes import addressof, c_uint64, sizeof
from typing import TYPE_CHECKING, Any, NamedTuple, Union, overload

from kvferry._bindings import OPCODE_READ, OPCODE_WRITE, kvferry_transfer_t
from kvferry._buffers import buffer_of
from kvferry._completions import Flight
from kvferry._errors import PeerUnreachable, RangeRejected, TransferError
from kvferry._ffi import c_string, u64
from kvferry._inbox import Message, encoded
from kvferry._managed import OfProcess
from kvferry._plans import GIB, Plan
from kvferry._ranges import Range
from kvferry._regions import Region, Slice
from kvferry._spans import Span
from kvferry._transfers import Transfer
from kvferry._waiting import and_size, limit, milliseconds

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from kvferry._native import Engine

VERSION = 1  # of a descriptor's text
LONGEST_TEXT = 1 << 20  # that is read, in bytes or characters

# Memory of this process: a Region, a slice of one, or what buffer_of() takes. A Range is memory that the caller keeps.
Local = Any
Remote = Union[Range, Region, int]  # at the peer: a range, or the address of one that is as long as the local one
Notify = Union[Message, bytes, str]

Encoded = tuple[bytes, bytes]  # the name and the text of a notification

KINDS = {OPCODE_READ: "read", OPCODE_WRITE: "write"}


class How(NamedTuple):
    """How a transfer goes, beside what it moves: see Peer.write()."""

    timeout: float | None
    notify: Encoded | None = None
    stream: Any = None
    context: Context | None = None


class Descriptor:
    """An engine's name, and ranges of its memory: what a peer needs to know, for any side channel.

    Engine.describe() makes it. json() is its text, and from_json() takes such a text, of 1 MiB at most, from anybody.
    """

    def __init__(self, name: str, ranges: Sequence[Range] = ()) -> None:
        c_string(name, "the name of an engine")
        self.name = name
        self.ranges = tuple(ranges)
        for each in self.ranges:
            if not isinstance(each, Range):
                raise TypeError(f"the memory in a descriptor is a Range, not {type(each).__name__}")

    def json(self) -> str:
        """The text: JSON in one line."""
        ranges = [[r.address, r.nbytes] for r in self.ranges]
        return json.dumps({"kvferry_descriptor": VERSION, "name": self.name, "ranges": ranges}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Descriptor:
        """The descriptor with that text. ValueError says what is wrong with it."""
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"the text of a descriptor is a str or bytes, not {type(text).__name__}")
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"this is no descriptor of an engine: it is longer than {LONGEST_TEXT}")
        try:
            found = json.loads(text)
            if found["kvferry_descriptor"] != VERSION:
                raise ValueError(f"its version is {found['kvferry_descriptor']!r:.20}, and {VERSION} is needed")
            return cls(found["name"], [Range(address, nbytes) for address, nbytes in found["ranges"]])
        except KeyError as e:
            raise ValueError(f"this is no descriptor of an engine: it has no {e}") from e
        except (TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"this is no descriptor of an engine: {e}") from e

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Descriptor) and (self.name, self.ranges) == (other.name, other.ranges)

    def __hash__(self) -> int:
        return hash((self.name, self.ranges))

    def __repr__(self) -> str:
        return f"Descriptor({self.name!r}, {list(self.ranges)})"


class Peer(OfProcess):
    """Another engine, or a Mooncake's. Engine.open() makes it; it keeps the engine. Any thread may use it.

    write() and read() return at once: the Transfer goes on by itself. A peer that has restarted under its name is found
    again. What a peer has registered decides what may be moved.
    """

    _instead = ": send its name"

    def __init__(self, engine: Engine, name: str, ranges: Sequence[Range] = ()) -> None:
        self.engine = engine
        self.name = name
        self.ranges = tuple(ranges)  # of its memory, if it was opened by a descriptor
        self._encoded = c_string(name, "the name of a peer")
        if not self._encoded:
            raise ValueError("the name of a peer is empty")

    @overload
    def write(
        self,
        local: Local,
        remote: Remote | Sequence[Remote],
        *,
        timeout: float | None = None,
        notify: Notify | None = None,
        stream: Any = None,
        context: Context | None = None,
    ) -> Transfer: ...

    @overload
    def write(
        self,
        local: Plan,
        *,
        source: int = 0,
        destination: int = 0,
        timeout: float | None = None,
        notify: Notify | None = None,
        stream: Any = None,
        context: Context | None = None,
    ) -> Transfer: ...

    def write(
        self,
        local: Any,
        remote: Remote | Sequence[Remote] | None = None,
        *,
        source: int = 0,
        destination: int = 0,
        timeout: float | None = None,
        notify: Notify | None = None,
        stream: Any = None,
        context: Context | None = None,
    ) -> Transfer:
        """Start writing memory of this process to the peer's.

        local is a Region, a slice of one, a tensor, an array or another object with contiguous memory; or a list of
        these. remote says where at the peer: a Range of as many bytes, or an address; or a list with one for each. Or
        local is a Plan: then what moves is what its source of that index, which is this process, has for its
        destination of that index, which is the peer.

        timeout is the time limit in seconds; None is the engine's and a second for each GiB, and math.inf is none.
        notify is a message that the peer gets when all bytes are there. stream orders the transfer: a CUDA stream, as
        PyTorch and CuPy have them, or its address. Then bytes move when the stream has come to the transfer, the
        stream goes on when it has ended, whether it has failed or not, and the time limit counts from there.

        context is a Context of opentelemetry.context, and has OpenTelemetry's API make a span of the transfer, a child
        of the span in the context, when the transfer has ended: before result(), done() and callbacks tell of the end.
        Any thread may make it. docs/operations.md lists its attributes. ImportError where the API is not installed.

        ValueError for memory that is not contiguous or of another length than its range; EngineClosed; TransferError
        where the engine refuses it at once. Other failures are the Transfer's.
        """
        return self._move(OPCODE_WRITE, local, remote, source, destination, _how(timeout, notify, stream, context))

    @overload
    def read(
        self,
        local: Local,
        remote: Remote | Sequence[Remote],
        *,
        timeout: float | None = None,
        notify: Notify | None = None,
        stream: Any = None,
        context: Context | None = None,
    ) -> Transfer: ...

    @overload
    def read(
        self,
        local: Plan,
        *,
        source: int = 0,
        destination: int = 0,
        timeout: float | None = None,
        notify: Notify | None = None,
        stream: Any = None,
        context: Context | None = None,
    ) -> Transfer: ...

    def read(
        self,
        local: Any,
        remote: Remote | Sequence[Remote] | None = None,
        *,
        source: int = 0,
        destination: int = 0,
        timeout: float | None = None,
        notify: Notify | None = None,
        stream: Any = None,
        context: Context | None = None,
    ) -> Transfer:
        """Start reading the peer's memory into this process's: see write().

        local must be writable. For a Plan the peer is its source of that index, and this process its destination.
        """
        return self._move(OPCODE_READ, local, remote, source, destination, _how(timeout, notify, stream, context))

    def send(self, message: Notify, *, timeout: float | None = None) -> Transfer:
        """Start sending a message. The Transfer ends when the peer's engine has accepted it, and fails if it does not.

        Engine.messages() of the peer returns it. A message has no order with others or with transfers.
        """
        sent = encoded(message)
        text = f"send a message of {len(sent[1])} bytes"
        return self._start(kvferry_transfer_t(), (), text, 0, How(timeout, sent), rejected=TransferError)

    def opening(self, timeout: float | None) -> Transfer:
        """Start opening it. Engine.open() and Engine.connect() wait for that."""
        return self._start(kvferry_transfer_t(), (), "open", 0, How(timeout), rejected=PeerUnreachable)

    def _move(self, opcode: int, local: Any, remote: Any, source: int, destination: int, how: How) -> Transfer:
        if isinstance(local, Plan):
            if remote is not None:
                raise TypeError("a plan says itself where its bytes go: there is no remote memory to give")
            return self._move_plan(opcode, local, source, destination, how)
        if source or destination:
            raise TypeError("source and destination are for plans")
        if remote is None:
            raise TypeError("remote says where the memory of the peer is: a Range, or an address")
        return self._move_ranges(opcode, local, remote, how)

    def _move_plan(self, opcode: int, plan: Plan, source: int, destination: int, how: How) -> Transfer:
        what = kvferry_transfer_t(opcode=opcode)
        total = ranges = 0
        plan.check_index("source", source)
        plan.check_index("destination", destination)
        for index, moved in enumerate(plan.transfers):
            if (moved.source, moved.destination) == (source, destination):
                what.plan, what.plan_index = plan.handle(self.engine.native[0]), index
                total, ranges = moved.bytes, moved.ranges
        text = f"{KINDS[opcode]} {total} bytes of a plan in {ranges} ranges"
        return self._start(what, (plan,), text, total, how, self._span(opcode, total, ranges, how))

    def _move_ranges(self, opcode: int, local: Any, remote: Any, how: How) -> Transfer:
        mine = local if isinstance(local, (list, tuple)) else [local]
        theirs = remote if isinstance(remote, (list, tuple)) else [remote]
        if theirs is not remote and not isinstance(remote, (Range, Region)):
            u64(remote, "remote")
        if len(mine) != len(theirs):
            raise ValueError(f"{len(mine)} pieces of local memory do not match {len(theirs)} ranges of the peer")
        addresses, sizes, keep = [], [], []
        for thing in mine:
            address, size, keeper = _local(thing, opcode == OPCODE_READ)
            addresses.append(address)
            sizes.append(size)
            keep.append(keeper)
        count = len(sizes)
        numbers = (c_uint64 * (3 * count))(*addresses, *map(_remote, theirs, sizes), *sizes)
        first, step = addressof(numbers), count * sizeof(c_uint64)
        what = kvferry_transfer_t(opcode=opcode, count=count)
        what.local, what.remote, what.lengths = first, first + step, first + 2 * step
        total = sum(sizes)
        text = f"{KINDS[opcode]} {total} bytes" + (f" in {count} ranges" if count != 1 else "")
        return self._start(what, keep, text, total, how, self._span(opcode, total, count, how))

    def _span(self, opcode: int, total: int, ranges: int, how: How) -> Span | None:
        """The span of a transfer; None where the program asks for none."""
        return None if how.context is None else Span(how.context, KINDS[opcode], self.name, total, ranges)

    def _start(
        self,
        what: kvferry_transfer_t,
        keep: Any,
        text: str,
        total: int,
        how: How,
        span: Span | None = None,
        rejected: type[TransferError] = RangeRejected,
    ) -> Transfer:
        what.segment = self._encoded
        what.announce = 1
        if how.timeout is None:
            most, named = self.engine.timeout + total / GIB, and_size(self.engine.limited_by)
        else:
            most, named = limit(how.timeout), "timeout"
        what.timeout_ms = milliseconds(most) if most < LONGEST else 0
        if how.notify is not None:
            what.notify_name, what.notify_text = how.notify
        if how.stream is not None:
            what.stream_kind, what.stream = b"cuda", _stream(how.stream)
        if span is not None:
            what.traceparent = span.traceparent
        return self.engine.start(what, Flight(keep, named), self.name, text, total, rejected, span)

    def __repr__(self) -> str:
        return f"<Peer {self.name}>"


LONGEST = 1e9  # seconds: a longer limit is none


def _how(timeout: float | None, notify: Notify | None, stream: Any, context: Context | None) -> How:
    return How(timeout, None if notify is None else encoded(notify), stream, context)


def _local(thing: Local, written: bool) -> tuple[int, int, Any]:
    """The address and the size of local memory, and what keeps it."""
    if isinstance(thing, Region):
        return _registered(thing, thing, written)
    if isinstance(thing, Slice):
        return _registered(thing, thing.region, written)
    if isinstance(thing, Range):
        return thing.address, thing.nbytes, None
    found = buffer_of(thing)
    if written and found.readonly:
        raise ValueError(f"this {type(thing).__name__} is read-only: nothing can be read into it")
    return found.address, found.nbytes, found.owner


def _registered(part: Any, region: Region, written: bool) -> tuple[int, int, Any]:
    if region.closed:
        raise ValueError(f"{region!r} is already closed")
    if written and region.registration.buffer.readonly:
        raise ValueError(f"the memory of {region!r} is read-only: nothing can be read into it")
    return part.address, part.nbytes, region.registration


def _remote(there: Any, size: int) -> int:
    """The address of a range of the peer, which must have that size."""
    if not isinstance(there, (Range, Region)):
        return u64(there, "remote")
    if there.nbytes != size:
        raise ValueError(f"{size} bytes of local memory do not match {there.nbytes} bytes of the peer: take a slice")
    return there.address


def _stream(stream: Any) -> int:
    """The address of a CUDA stream: PyTorch's, CuPy's, one with __cuda_stream__, or the address itself."""
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return u64(protocol()[1], "stream")
    for name in ("cuda_stream", "ptr"):
        address = getattr(stream, name, None)
        if address is not None:
            return u64(address, "stream")
    return u64(stream, "stream")
