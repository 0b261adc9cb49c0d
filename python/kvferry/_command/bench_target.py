"""The peer of `kvferry bench`: which of its memory may be read and overwritten, and what is in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kvferry._bindings import KVFERRY_ACCESS_NONE, OPCODE_READ
from kvferry._command import serving
from kvferry._command.declaration import CommandError
from kvferry._command.engines import describe, open_peer
from kvferry._command.pattern import Pattern
from kvferry._command.serving import PAGE, Notice, Request
from kvferry._engine import DEFAULT_TIMEOUT, Engine
from kvferry._ffi import pack_u64
from kvferry._messages import notification
from kvferry._places import HostMemory
from kvferry._texts import DescribedBuffer

LOOKED_AT = 16  # buffers of a peer that may have a notice
LAST_WORDS = 2.0  # seconds to say that a bench has ended
PATIENCE = 20.0  # seconds for a server to give a part
SEED = 0x6B766672  # of the pattern in the memory of other peers


class NotAllowedError(CommandError):
    """A peer has memory, and none of it may be used as a bench does."""


class Target:
    """Memory of a peer, from address on.

    pattern is what is in it, or is written to it, by positions from position on. known is the number of bytes, from the
    first one on, that have it now.
    """

    def __init__(self, segment: int, kind: str, place: str, address: int, size: int) -> None:
        self.segment = segment
        self.kind = kind  # serve, kvferry or mooncake
        self.place = place
        self.address = address
        self.size = size
        self.may_write = False
        self.known = 0
        self.pattern = Pattern(SEED)
        self.position = 0

    def keep(self) -> None:
        """Say that this bench lives. It is called every second or so."""

    def end(self) -> None:
        """Say that this bench has ended. The peer need not answer any more."""


class Peer:
    """A peer's segment, as the target is looked for in it."""

    def __init__(self, engine: Engine, name: str, landing: HostMemory) -> None:
        """landing has a page, and is registered here."""
        self._engine = engine
        self._landing = landing
        self.name = name
        self.description = describe(engine, name)
        self.segment = open_peer(engine, name)

    def page(
        self, buffer: DescribedBuffer, request: Request | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> Notice | None:
        """The notice in a buffer, if it has one and can be read. With a request, the peer gets it."""
        here, there = pack_u64(self._landing.address), pack_u64(buffer["address"] + buffer["length"] - PAGE)
        message = None if request is None else notification(serving.MESSAGE, request.encode())
        code = self._engine.transfer(OPCODE_READ, self.segment, here, there, pack_u64(PAGE), 1, message, timeout)
        if code != 0 and request is not None:
            raise CommandError(f"{self.name} does not answer: {self._engine.last_error()}")
        notice = Notice.decode(self._landing.read(PAGE)) if code == 0 else None
        return notice if notice is not None and notice.size <= buffer["length"] - PAGE else None


class Served(Target):
    """A part of the memory of a `kvferry serve`."""

    def __init__(self, peer: Peer, buffer: DescribedBuffer, notice: Notice) -> None:
        """Ask for a part, and wait for it."""
        self._peer = peer
        self._buffer = buffer
        self._id = serving.new_id()
        notice, number = self._part()
        address = buffer["address"] + number * notice.part_size
        super().__init__(peer.segment, "serve", notice.place, address, notice.part_size)
        self.may_write, self.known = True, self.size
        self.pattern = Pattern(notice.seed)
        self.position = number * notice.part_size
        self._said = time.monotonic()
        self._ended = False

    def _part(self) -> tuple[Notice, int]:
        deadline = time.monotonic() + PATIENCE
        asked = 0.0
        while time.monotonic() < deadline:
            again = time.monotonic() > asked + 1
            notice = self._peer.page(self._buffer, Request(self._id, serving.BEGIN) if again else None)
            if again:
                asked = time.monotonic()
            if notice is not None and self._id in notice.parts:
                return notice, notice.parts.index(self._id)
            if notice is not None and None not in notice.parts:
                more = f"start it with --clients {len(notice.parts) + 1}"
                raise CommandError(f"{self._peer.name} serves other benches: {more}")
            time.sleep(serving.LOOK)
        raise CommandError(f"{self._peer.name} has not given this bench a part of its memory within {PATIENCE:g} s")

    def keep(self) -> None:
        if time.monotonic() > self._said + serving.RENEWAL:
            self._peer.page(self._buffer, Request(self._id, serving.RENEW))
            self._said = time.monotonic()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            with suppress(CommandError):
                self._peer.page(self._buffer, Request(self._id, serving.END), LAST_WORDS)


@contextmanager
def target_of(engine: Engine, name: str, number: int | None, overwrite: bool, landing: HostMemory) -> Iterator[Target]:
    """The target at a peer: a part of a server's memory, or else a buffer of the peer's.

    number is that of the buffer to take. overwrite says that it may be overwritten where the peer is no server. landing
    has a page, and is registered here until the engine ends. CommandError says why there is no target.
    """
    if engine.register(landing.address, landing.size, landing.location, KVFERRY_ACCESS_NONE) != 0:
        raise CommandError(f"memory of this side cannot be registered: {engine.last_error()}")
    peer = Peer(engine, name, landing)
    buffers = peer.description["buffers"]
    if not buffers:
        raise CommandError(f"{name} offers no memory")
    for buffer in buffers[:LOOKED_AT]:
        if buffer["length"] > PAGE and buffer["access"] != "write" and (notice := peer.page(buffer)) is not None:
            served = Served(peer, buffer, notice)
            try:
                yield served
            finally:
                served.end()
            return
    yield _others(peer, buffers, number, overwrite)


def _others(peer: Peer, buffers: list[DescribedBuffer], number: int | None, overwrite: bool) -> Target:
    """A buffer of a peer that is no server: the one of that number, or the largest one that may be used so."""
    needed = ("read-write",) if overwrite else ("read-write", "read")
    usable = [buffer for buffer in buffers if buffer["access"] in needed]
    if number is not None and number >= len(buffers):
        raise CommandError(f"{peer.name} has no buffer {number}: it has {len(buffers)}")
    if number is not None and buffers[number] not in usable:
        raise CommandError(f"{peer.name} lets peers only {buffers[number]['access']} buffer {number}")
    if not usable:
        what = "both read and write" if overwrite else "read"
        raise NotAllowedError(f"{peer.name} has no memory that peers may {what}")
    buffer = buffers[number] if number is not None else max(usable, key=lambda b: b["length"])
    target = Target(peer.segment, peer.description["kind"], buffer["location"], buffer["address"], buffer["length"])
    target.may_write = overwrite
    return target
