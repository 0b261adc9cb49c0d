"""Memory of NPUs and GPUs of ours against host memory of Mooncake nodes, either way round, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from support import devices
from support.pairs import DIRECTIONS, SETTINGS, Pair
from support.peers import Peers
from support.plans import move_between_layouts
from support.spans import adjacent_near_only, scattered

pytestmark = pytest.mark.devices

MIB = 1 << 20
SIZE = 3 * MIB + 4099
SIZES = (1, 3, 24, 63, 64, 1000, 4095, 4097, 16384, 65537, 262147, 2 * MIB + 1)
LAYOUTS = {
    "all sizes, scattered": scattered(SIZES),
    "adjacent at the initiator only": adjacent_near_only([16384, 5, 4096, 70001] * 12),
    "many and small": scattered([random.Random(3).randrange(1, 9000) for _ in range(300)], seed=4),
    "whole": [(0, 0, SIZE)],
}
PEERS = (
    ("0.3.13", "default", "npu:1"),
    ("0.3.13", "default", "cuda:1"),
    ("0.3.13", "no-pool", "cuda:1"),
    ("0.3.8", "default", "npu:1"),
    ("0.3.8", "default", "cuda:1"),
)

directions = pytest.mark.parametrize("direction", DIRECTIONS)
opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@pytest.fixture(scope="module", params=PEERS, ids="-".join)
def pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    kind, setting, place = request.param
    ours = devices.start(module_peers).create(protocol="ascend" if place.startswith("npu") else "tcp")
    theirs = module_peers(kind, **SETTINGS[setting]).create()
    yield Pair(kind, setting, ours.memory(SIZE, place=place), theirs.memory(SIZE))
    ours.kill()
    theirs.kill()


@directions
@opcodes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_arrives_whatever_its_blocks_look_like(
    pair: Pair, direction: str, opcode: str, layout: str, seed: int
) -> None:
    pair.fill(seed)
    pair.transfer(direction, opcode, "batch", LAYOUTS[layout])


@directions
@opcodes
@pytest.mark.parametrize("how", ("sync", "async"))
def test_every_way_of_waiting_sees_the_bytes(pair: Pair, direction: str, opcode: str, how: str, seed: int) -> None:
    pair.fill(seed)
    pair.transfer(direction, opcode, how, LAYOUTS["all sizes, scattered"])


@opcodes
def test_a_plan_moves_between_layouts_and_nothing_else(pair: Pair, opcode: str, seed: int) -> None:
    move_between_layouts(pair, opcode, seed)


def test_transfers_both_ways_at_once_do_not_mix(pair: Pair, seed: int) -> None:
    pair.fill(seed)
    pair.transfer_both_ways_at_once("async_opcode", batches=1)
