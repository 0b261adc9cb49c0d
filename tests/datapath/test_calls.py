"""Every call that moves bytes, between memory of each kind and of the host: all arrive, nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import devices
from support.couple import SIZE, Couple
from support.peers import Peers
from support.world import HUNG

WAYS = [("write", how) for how in ("sync", "batch", "async", "submit")]
WAYS += [("read", how) for how in ("sync", "batch", "async")]


@pytest.fixture(scope="module")
def couple(module_peers: Peers, memory: str, path: str) -> Iterator[Couple]:
    couple = Couple(module_peers, memory)
    yield couple
    assert couple.path == path
    if memory != "host":
        devices.end(couple.initiator)


@pytest.mark.parametrize("opcode,how", WAYS, ids=["-".join(way) for way in WAYS])
def test_every_call_moves_blocks_of_all_sizes_and_nothing_else(
    couple: Couple, opcode: str, how: str, seed: int
) -> None:
    couple.near.fill(2 * seed)
    couple.far.fill(2 * seed + 1)
    couple.transfer(opcode, how, seed)


def test_both_write_to_each_other_at_once(couple: Couple, seed: int) -> None:
    couple.near.fill(2 * seed)
    couple.far.fill(2 * seed + 1)
    half = SIZE // 2
    back = [[couple.far.address, couple.near.address, half]] * 8
    there = [[couple.near.address + half, couple.far.address + half, half]] * 8
    pending = [
        couple.target.start_move(couple.initiator.name, "write", back),
        couple.initiator.start_move(couple.target.name, "write", there),
    ]
    assert [each.result(HUNG)["code"] for each in pending] == [0, 0]
    couple.near.model[:half] = couple.far.model[:half]
    couple.far.model[half:] = couple.near.model[half:]
    couple.near.check()
    couple.far.check()
