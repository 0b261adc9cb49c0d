"""A target that is stopped while a WRITE is in flight copies nothing from the source once that was given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.memory import transfer
from support.peers import Peers
from support.process import connections_of, sockets_of, stopped, until
from support.world import GIVEN_UP, HUNG, PATIENT

WORD = 16  # bytes that two patterns never have in common at the same place
ENDED_LIMIT = 20.0  # seconds within which a target that goes on ends a connection that was given up

LIMITS = (
    *(("MC_SLICE_TIMEOUT", way) for way in ("batch", "submit")),
    *(("MC_TRANSFER_TIMEOUT", way) for way in ("sync", "async")),
)
"""What limits the time of a transfer, and by which calls."""

sizes = pytest.mark.parametrize("size", (4096, 8 << 20), ids=("4KiB", "8MiB"))


class Stage:
    """An initiator and a target with a connection between them, and memory of one size on both sides.

    The source is host memory that the test has registered, so that it can be unregistered. Bytes of a device come from
    staging blocks, which no caller gets to reuse.
    """

    def __init__(self, peers: Peers, size: int, **settings: str) -> None:
        self.initiator = peers(**{**PATIENT, **settings}).create()
        self.target = peers(**PATIENT).create()
        self.source = self.initiator.memory(size, 1)
        self.sink = self.target.memory(size, 2)
        transfer(self.source, self.sink, "write", [(0, 0, size)])
        self.source.fill(3)

    @property
    def block(self) -> list[list[int]]:
        return [[self.source.address, self.sink.address, self.source.size]]

    def reuse_source(self) -> None:
        """Put something else into the source, as its owner does who was told that nothing uses it any more."""
        self.source.fill(4)

    def wait_for_old_connections(self, old: set[str]) -> None:
        """Wait until the target has done all that came over connections that it held before."""
        until(lambda: not old & sockets_of(self.target.pid), ENDED_LIMIT, "the target ends the connections given up")

    def check_nothing_late(self) -> None:
        """Check that the target's memory has nothing of the source's next use."""
        held = bytes.fromhex(self.sink.peer.ask("peek", region=self.sink.region, offset=0, length=self.sink.size))
        later = bytes(self.source.model)
        late = [i for i in range(0, len(held), WORD) if held[i : i + WORD] == later[i : i + WORD]]
        assert not late, f"{len(late) * WORD} bytes were read after the call had returned, from byte {late[0]} on"


def give_up(stage: Stage, how: Callable[[Stage], None]) -> None:
    """Give a WRITE to a stopped target up, reuse its source, and look at what the target has once it has gone on."""
    old = connections_of(stage.target.pid)
    assert old, "the target has a connection to the initiator"
    with stopped(stage.target):
        how(stage)
        stage.reuse_source()
    stage.wait_for_old_connections(old)
    stage.check_nothing_late()


@sizes
@pytest.mark.parametrize("limit,way", LIMITS, ids=[f"{limit}-{way}" for limit, way in LIMITS])
def test_a_source_is_not_read_after_a_write_ran_out_of_time(start_peer: Peers, size: int, limit: str, way: str) -> None:
    stage = Stage(start_peer, size, **{limit: "1"})

    def run_out(stage: Stage) -> None:
        result = stage.initiator.move(stage.target.name, "write", stage.block, way, limit=HUNG)
        assert result["code"] < 0

    give_up(stage, run_out)


@sizes
def test_a_source_is_not_read_after_it_was_unregistered(start_peer: Peers, size: int) -> None:
    stage = Stage(start_peer, size)

    def unregister(stage: Stage) -> None:
        batch = submit(stage)
        assert stage.initiator.call("unregister_memory", stage.source.address, limit=GIVEN_UP) == 0
        assert stage.initiator.call("transfer_check_status", batch) < 0

    give_up(stage, unregister)


@sizes
def test_a_source_is_not_read_after_its_engine_was_closed(start_peer: Peers, size: int) -> None:
    stage = Stage(start_peer, size)

    def close(stage: Stage) -> None:
        submit(stage)
        stage.initiator.ask("drop", limit=GIVEN_UP, engine="main")

    give_up(stage, close)


def submit(stage: Stage) -> int:
    """Start the WRITE, with nobody who waits for it."""
    batch: int = stage.initiator.call("transfer_submit_write", stage.target.name, *stage.block[0])
    assert batch != 0
    return batch
