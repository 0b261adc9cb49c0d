"""Pairs of our engine and another one, for every kind of the other and every way it may be set up."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from .memory import Memory, Span, addresses, apply, transfer
from .peer import EXIT_LIMIT, PeerError
from .peers import Peers
from .spans import scattered
from .venvs import FOR_CUDA, VERSIONS

KINDS = (*VERSIONS, FOR_CUDA, "ours")
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "v1": {"MC_TCP_PROTO": "1"},
    "no-pool": {"MC_TCP_ENABLE_CONNECTION_POOL": "0"},
    "pool": {"MC_TCP_ENABLE_CONNECTION_POOL": "1"},
}
SETTINGS_OF = {FOR_CUDA: ("default",)}  # over the wire it is 0.3.13; others have all settings
V1_ONLY = ("0.3.8", "0.3.11")
CRASHING = ("0.3.8", "0.3.11")  # see docs/compatibility.md
SEEN_EARLY = ("pages", "scatter")
PROGRESS_LIMIT = 30.0  # seconds, Mooncake's default
THEY_GAVE_UP = f"no transfer progress within {PROGRESS_LIMIT:.0f}s"
DIRECTIONS = ("ours-to-theirs", "theirs-to-ours")


@dataclass
class Pair:
    """Our peer with its memory, and the other one with its own. make_another makes a peer like the other one, and its
    memory."""

    kind: str
    setting: str
    ours: Memory
    theirs: Memory
    make_another: Callable[[], Memory] | None = None
    crashes: int = 0  # of the other one

    def sides(self, direction: str) -> tuple[Memory, Memory]:
        """Return the initiator's memory and the target's."""
        return (self.ours, self.theirs) if direction == "ours-to-theirs" else (self.theirs, self.ours)

    def fill(self, seed: int) -> None:
        self.ours.fill(2 * seed)
        try:
            self.theirs.fill(2 * seed + 1)
        except PeerError:
            self._replace_what_crashed()
            self.theirs.fill(2 * seed + 1)

    def transfer(self, direction: str, opcode: str, how: str, spans: Sequence[Span]) -> None:
        """Move spans, then compare both memories as a whole with what they must hold, byte for byte."""
        try:
            self._transfer(direction, opcode, how, spans)
        except AssertionError:  # a PeerError, too
            self._replace_what_crashed()
            self._transfer(direction, opcode, how, spans)

    def _replace_what_crashed(self) -> None:
        """Have another peer in place of one that has crashed, once in a pair, and fill both memories anew. Call this
        while an exception is handled: it is raised again where the other peer is not to be replaced."""
        if self.make_another is None or self.kind not in CRASHING or self.crashes > 0 or not self._they_crashed():
            raise
        self.crashes += 1
        self.theirs = self.make_another()
        self.ours.fill(1)
        self.theirs.fill(2)

    def _they_crashed(self) -> bool:
        try:
            self.theirs.holds()
        except PeerError:
            return self.theirs.peer.process.wait(EXIT_LIMIT) == -signal.SIGSEGV
        return False

    def _transfer(self, direction: str, opcode: str, how: str, spans: Sequence[Span]) -> None:
        initiator, target = self.sides(direction)
        # Without a notification this call of the older versions raises.
        notify = ("done", how) if how == "batch_opcode" else ()
        began = time.monotonic()
        try:
            transfer(initiator, target, opcode, spans, how, notify)
        except AssertionError:
            if direction == "ours-to-theirs" or not self.they_gave_up_too_soon(began):
                raise
            transfer(initiator, target, opcode, spans, how, notify)
        if notify:
            assert target.peer.ask("notifies", engine="main") == [list(notify)]
        if direction == "theirs-to-ours" and self.they_report_early(how):
            target.check_soon()
        self.ours.check()
        self.theirs.check()

    def transfer_both_ways_at_once(self, how: str, batches: int) -> None:
        """Have each side read and write, at the same time, in parts of the memories of their own, by so many batches
        for each part. Then compare both memories."""
        quarter = self.ours.size // 4
        pending = []
        for part, (direction, opcode) in enumerate(itertools.product(DIRECTIONS, ("read", "write"))):
            local, remote = self.sides(direction)
            at, blocks = part * quarter, scattered([40001, 3, 8192] * 10, part)
            spans = [(at + a, at + b, n) for a, b, n in blocks]
            pending += [
                local.peer.start_move(remote.peer.name, opcode, addresses(local, remote, spans[i::batches]), how)
                for i in range(batches)
            ]
            apply(opcode, local, remote, spans)
        assert [p.result()["code"] for p in pending] == [0] * len(pending)
        self.ours.check_soon() if self.they_report_early() else self.ours.check()
        self.theirs.check()

    def they_gave_up_too_soon(self, began: float) -> bool:
        """Tell whether they say that nothing moved for longer than there was anything to move: see
        docs/compatibility.md."""
        return time.monotonic() - began < PROGRESS_LIMIT and THEY_GAVE_UP in self.theirs.peer.log()

    def they_report_early(self, how: str = "") -> bool:
        """Tell whether they report a WRITE before it is there: v1 has no acknowledgement, and only we make up for it;
        with pages and scatter transfers they have been seen to do so."""
        v1 = self.kind in V1_ONLY or self.setting == "v1"
        return self.kind != "ours" and (v1 or how in SEEN_EARLY)


def make_pair(peers: Peers, kind: str, setting: str, size: int, host: str = "127.0.0.1", **both: str) -> Pair:
    ours = peers("ours", **both)

    def make_theirs() -> Memory:
        theirs = peers(kind, **SETTINGS[setting], **both)
        theirs.create(host)
        return theirs.memory(size, 2)

    ours.create(host)
    return Pair(kind, setting, ours.memory(size, 1), make_theirs(), make_theirs)


def combinations(kinds: Sequence[str], settings: Sequence[str]) -> list[Any]:
    """Return the parameters of a fixture that calls `running`."""
    return [pytest.param((k, s), id=f"{k}-{s}") for k in kinds for s in settings if s in SETTINGS_OF.get(k, SETTINGS)]


def running(peers: Peers, which: tuple[str, str], size: int, host: str = "127.0.0.1", **both: str) -> Iterator[Pair]:
    """The body of a fixture: make a pair, and end it when the fixture ends."""
    pair = make_pair(peers, *which, size, host, **both)
    yield pair
    pair.ours.peer.kill()
    pair.theirs.peer.kill()
