"""How fast bytes move between this process and a peer, and what the kernel, the processors and the engine say of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
from kvferry._command.declaration import CommandError
from kvferry._engine import Engine
from kvferry._ffi import u64_array
from kvferry._probes import processors
from kvferry.stats import Flow, InitiatorPeer

FIRST = 8 << 20  # bytes of the first batch: what makes an engine open several connections
LONG_ENOUGH = 0.1  # seconds of a batch: then its beginning and end do not matter
REQUEST = 1 << 20  # bytes of a request
SAMPLE = 0.05  # seconds between two looks at the connections
DIRECTIONS = {"write": OPCODE_WRITE, "read": OPCODE_READ}
OWN_MEMORY = "local"  # among the peers in the statistics
SUMS = (
    "sent_bytes",
    "retransmitted_bytes",
    "received_bytes",
    "received_segments",
    "out_of_order_segments",
    "busy_seconds",
    "peer_limited_seconds",
    "send_buffer_limited_seconds",
)


class Range(NamedTuple):
    """Memory that is moved from or to, both sides of it."""

    segment: int
    local: int
    remote: int
    length: int


class Rate(NamedTuple):
    """What was measured of one direction with one number of connections."""

    direction: str  # write or read
    seconds: float
    bytes: int
    connections: int
    path: str  # tcp, host or local
    flow: Flow  # sums are those of the time, the round trip is the mean, and windows are the largest seen
    load: float  # of the processors that this process may use: 0 to 1
    others: float  # of that, by other processes
    starved: float  # threads of this process that were ready to run and had no processor, in the mean

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds

    def described(self) -> dict[str, Any]:
        """As --json has it."""
        return {**self._asdict(), "bytes_per_second": self.rate}


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Other settings for the engines that are made in the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure(engine: Engine, direction: str, memory: Range, seconds: float) -> Rate:
    """Move bytes for a time, with the only peer of the engine. CommandError where a transfer fails."""
    length = min(FIRST, memory.length)
    move(engine, direction, memory, length)  # connects
    watch = Watch(engine)
    before, counted = processors.times(), watch.begin()
    total, start = 0, time.monotonic()
    try:
        while (now := time.monotonic()) < start + seconds:
            move(engine, direction, memory, length)
            total += length
            if time.monotonic() - now < LONG_ENOUGH:
                length = min(2 * length, memory.length)
    finally:
        passed = processors.times().since(before)
        flow = watch.end(counted)
    return Rate(
        direction,
        time.monotonic() - start,
        total,
        flow["connections"],
        watch.path,
        flow,
        passed.load,
        passed.others,
        passed.starved,
    )


def move(engine: Engine, direction: str, memory: Range, length: int) -> None:
    """Move the first bytes of the memory, and wait."""
    offsets = range(0, length, REQUEST)
    columns = (
        [memory.local + offset for offset in offsets],
        [memory.remote + offset for offset in offsets],
        [min(REQUEST, length - offset) for offset in offsets],
    )
    local, remote, lengths = (u64_array(column, "a range") for column in columns)
    code = engine.transfer(
        DIRECTIONS[direction],
        memory.segment,
        local.address,
        remote.address,
        lengths.address,
        len(offsets),
        None,
        engine.timeout(),
    )
    if code != 0:
        raise CommandError(f"a {direction.upper()} failed: {engine.last_error()}")


class Watch:
    """Looks at the connections to a peer while bytes move: windows are empty when they do not."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ended = threading.Event()
        self._seen: list[Flow] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.path = "tcp"

    def begin(self) -> InitiatorPeer | None:
        """Begin, and return the counts so far."""
        found = self._peer_now()
        self._thread.start()
        return found

    def end(self, before: InitiatorPeer | None) -> Flow:
        """End, and return what happened since."""
        self._ended.set()
        self._thread.join()
        now = self._peer_now()
        if now is None:
            raise CommandError("the engine has no peer")
        flow = now["tcp"]
        moved = {path: bytes + now["write"]["bytes"][path] for path, bytes in now["read"]["bytes"].items()}
        self.path = max(moved, key=lambda path: moved[path])
        made: dict[str, Any] = dict(flow)
        for name in SUMS:
            made[name] -= before["tcp"][name] if before is not None else 0  # type: ignore[literal-required]
        if self._seen:
            made["round_trip_seconds"] = sum(seen["round_trip_seconds"] for seen in self._seen) / len(self._seen)
        for name in ("congestion_window_bytes", "peer_window_bytes"):
            made[name] = max((seen[name] for seen in self._seen), default=made[name])  # type: ignore[literal-required]
        return made  # type: ignore[return-value]

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE):
            found = self._peer_now()
            if found is not None:
                self._seen.append(found["tcp"])

    def _peer_now(self) -> InitiatorPeer | None:
        return next((one for one in self._engine.stats()["initiator"] if one["peer"] != OWN_MEMORY), None)
