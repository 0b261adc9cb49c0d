"""A WRITE that was given up, and a later one to the same place: what was acknowledged stays."""

from __future__ import annotations

from .memory import transfer
from .peer import Pending
from .peers import Peers
from .process import connections_of, connections_to, same_host_connections, sockets_of, soon, stopped, until
from .wire import data_address
from .world import HUNG, QUICK

PATIENT = {**QUICK, "MC_TRANSFER_TIMEOUT": "30", "MC_TCP_STATUS_TIMEOUT_SEC": "30", "MC_TCP_PROGRESS_TIMEOUT_SEC": "30"}
"""Settings with which a transfer ends by the slice timeout, or not at all."""

SIZES = (4 << 10, 64 << 10, 8 << 20)  # bytes of a WRITE
ROUNDS = 3
TRIES = 5  # WRITEs until one is acknowledged: each may run out of time
ENDED_LIMIT = 20.0  # seconds within which a target ends a connection that was given up
UNDER_WAY_LIMIT = 0.3  # seconds that the last WRITE may take to get as far as a connection of its own
FIRST, LATE, REUSED, LAST = range(10, 14)  # what the memory is filled with


class Overtaking:
    """An initiator, and a target of some kind that is stopped while one WRITE to it is given up and another begins."""

    def __init__(self, peers: Peers, kind: str, same_host: str, size: int) -> None:
        both = {"KVFERRY_SAME_HOST": same_host}
        self.initiator = peers("ours", **PATIENT, **both, MC_SLICE_TIMEOUT="1", MC_TCP_LANES_PER_PEER="1").create()
        self.target = peers(kind, **both).create()
        self.port = data_address(self.target.name)[1]
        self.old = self.initiator.memory(size, FIRST)
        self.new = self.initiator.memory(size)
        self.sink = self.target.memory(size)

    def round(self) -> None:
        """Give a WRITE up, have a later one acknowledged, and check that the later one's bytes stay."""
        self.old.fill(FIRST)
        transfer(self.old, self.sink, "write", [(0, 0, self.old.size)])
        self.old.fill(LATE)
        self.new.fill(LAST)
        held = connections_of(self.target.pid)
        with stopped(self.target):
            assert self._start(self.old.address).result(HUNG)["code"] < 0
            self.old.fill(REUSED)
            before = self._connections()
            last = self._start(self.new.address)
            soon(lambda: self._connections() > before, UNDER_WAY_LIMIT)  # it may as well wait for the former one's end
        self._acknowledged(last)
        self.sink.model[:] = self.new.model
        self.sink.check()
        self._wait_for_the_end_of_old_connections(held)
        self.sink.check()

    def _start(self, source: int) -> Pending:
        return self.initiator.start_move(self.target.name, "write", [[source, self.sink.address, self.old.size]])

    def _connections(self) -> int:
        return len(connections_to(self.port)) + len(same_host_connections())

    def _acknowledged(self, last: Pending) -> None:
        for _ in range(TRIES):
            if last.result(HUNG)["code"] == 0:
                return
            last = self._start(self.new.address)
        raise AssertionError(f"{TRIES} WRITEs to a target that goes on were not acknowledged")

    def _wait_for_the_end_of_old_connections(self, held: set[str]) -> None:
        """Wait until the target has ended the connections that it had."""
        until(lambda: not held & sockets_of(self.target.pid), ENDED_LIMIT, "the old connections end")
