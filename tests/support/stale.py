"""A WRITE that was given up, and a later one to the same place: what was acknowledged stays."""

from __future__ import annotations

from collections.abc import Sequence

from . import devices
from .dataport import DataPort
from .memory import Memory, Span, addresses, transfer
from .peer import Pending
from .peers import Peers
from .process import connections_of, sockets_of, soon, stopped, until
from .world import HUNG, PATIENT

FORMER = {4 << 10: 1000, 64 << 10: 64, 8 << 20: 1}
"""By the bytes of a WRITE that is given up: how many of them there are, all to the same place. A target is busy with
them for a while, during which it may serve what came later on another connection."""

PART = 4 << 10  # bytes of a WRITE to a part of the place
FAR = 2 << 20  # bytes: no part begins later, since a target may never have got what is behind
ROUNDS = 3
TRIES = 5  # WRITEs until one is acknowledged: each may run out of time
ENDED_LIMIT = 20.0  # seconds within which a target ends a connection that was given up
UNDER_WAY_LIMIT = 0.3  # seconds that the last WRITE may take to get as far as a connection of its own
FIRST, LATE, REUSED, LAST = range(10, 14)  # what the memory is filled with


class Overtaking:
    """An initiator, and a target of some kind that is stopped while WRITEs to it are given up and another one begins,
    to the same place or to a part of it."""

    def __init__(self, peers: Peers, kind: str, place: str, size: int, whole: bool) -> None:
        self.initiator = peers("ours", **PATIENT, MC_SLICE_TIMEOUT="1", MC_TCP_LANES_PER_PEER="1").create()
        self.target = peers(kind, **devices.needed(place)).create()
        self._port = DataPort(self.target.name)
        self._size = size
        self._offset, self._length = (0, size) if whole else (min(size - PART, FAR), PART)
        self.old = self.initiator.memory(size, FIRST)
        self.new = self.initiator.memory(size, LAST)
        self.sink = self.target.memory(size, place=place)

    def round(self) -> None:
        """Give WRITEs up, have a later one acknowledged, and check that the later one's bytes stay."""
        self.old.fill(FIRST)
        transfer(self.old, self.sink, "write", [(0, 0, self._size)])
        self.old.fill(LATE)
        held = connections_of(self.target.pid)
        with stopped(self.target):
            former = [(0, 0, self._size)] * FORMER[self._size]
            assert self._start(self.old, former).result(HUNG)["code"] < 0
            self.old.fill(REUSED)
            before = self._connections()
            last = self._start_last()
            soon(lambda: self._connections() > before, UNDER_WAY_LIMIT)  # it may as well wait for the former one's end
        self._wait_until_acknowledged(last)
        self._check()
        until(lambda: not held & sockets_of(self.target.pid), ENDED_LIMIT, "the target ends its old connections")
        self._check()

    def _start(self, source: Memory, spans: Sequence[Span]) -> Pending:
        return self.initiator.start_move(self.target.name, "write", addresses(source, self.sink, spans))

    def _start_last(self) -> Pending:
        return self._start(self.new, [(self._offset, self._offset, self._length)])

    def _connections(self) -> int:
        return len(self._port.connections())

    def _wait_until_acknowledged(self, last: Pending) -> None:
        for _ in range(TRIES):
            if last.result(HUNG)["code"] == 0:
                return
            last = self._start_last()
        raise AssertionError(f"{TRIES} WRITEs to a target that goes on were not acknowledged")

    def _check(self) -> None:
        held = self.target.ask("peek", region=self.sink.region, offset=self._offset, length=self._length)
        wanted = self.new.model[self._offset : self._offset + self._length]
        assert bytes.fromhex(held) == wanted, "a WRITE that was given up has overwritten one that was acknowledged"
