"""An engine that has nothing to do, or can do nothing, uses no processor, and keeps what it needs for later."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import rawpeer, wire
from support.memory import transfer
from support.peers import Peers
from support.process import connections_to, cpu_use
from support.world import World

IDLE = 3.0  # seconds
IDLE_CPU = 0.15  # seconds of processor time in them: 5 percent of one core


@pytest.fixture(scope="module")
def idlers(module_peers: Peers) -> Iterator[World]:
    yield World(module_peers, "0.3.13", MC_TCP_STATUS_TIMEOUT_SEC="1", MC_TCP_PROGRESS_TIMEOUT_SEC="1")


def test_an_idle_engine_uses_no_processor(world: World) -> None:
    for used in cpu_use([world.engine.pid, world.healthy.pid], IDLE):
        assert used < IDLE_CPU


def test_waiting_for_a_stuck_peer_uses_no_processor(world: World) -> None:
    with rawpeer.RawTarget(rawpeer.stall) as target:
        block = [[world.scratch.address, rawpeer.BASE, 1 << 20]]
        pending = world.engine.start_move(target.name, "read", block)
        (used,) = cpu_use([world.engine.pid], 1.5)
        assert used < IDLE_CPU
        assert pending.result()["code"] < 0


@pytest.mark.parametrize("opcode", ("read", "write"))
def test_an_idle_lane_of_a_mooncake_initiator_is_not_closed(idlers: World, opcode: str) -> None:
    """Longer than every timeout of ours. 0.3.13 fails the next transfer on a lane that was closed."""
    far, near = idlers.near, idlers.far
    transfer(near, far, opcode, [(0, 0, 300_000)])
    port = wire.data_address(idlers.engine.name)[1]
    lanes = connections_to(port)
    assert lanes
    cpu_use([idlers.engine.pid], IDLE + 1)
    assert lanes <= connections_to(port)
    transfer(near, far, opcode, [(1, 2, 300_000)])
    near.check()
    far.check()


def test_an_idle_lane_to_a_mooncake_target_may_close_but_the_next_transfer_works(idlers: World) -> None:
    near, far = idlers.near, idlers.far
    transfer(near, far, "write", [(0, 0, 300_000)])
    cpu_use([idlers.engine.pid], IDLE)
    transfer(near, far, "read", [(5, 6, 300_000)])
    near.check()
    far.check()
