"""READ and WRITE between our engine and every other, either way round, compared byte for byte on both sides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from support.pairs import DIRECTIONS, KINDS, Pair, combinations, running
from support.peers import Peers
from support.spans import adjacent, adjacent_near_only, scattered
from support.venvs import FOR_CUDA

SIZES = (1, 2, 3, 7, 8, 9, 23, 24, 25, 63, 1000, 4095, 4096, 4097, 16384, 65535, 65536, 65537, 131071, 262147, 1048577)
WAYS = [
    *itertools.product(("write",), ("sync", "batch", "async", "submit")),
    *itertools.product(("read",), ("sync", "batch", "async")),
]
WAYS_OF_ARRAYS = ("arrays", "pages", "scatter")  # calls that there are since 0.3.14
WAYS_BY_OPCODE = ("sync_opcode", "batch_opcode", "async_opcode")  # calls that take the direction as an argument
MIB = 1 << 20
LAYOUTS = {
    "adjacent": adjacent([4096] * 300),
    "adjacent and mixed": adjacent([1, 65537, 16, 4096, 3, 300000, 8191] * 4),
    "adjacent at the initiator only": adjacent_near_only([16384, 5, 4096, 70001] * 12),
    "small and scattered": scattered([random.Random(3).randrange(1, 600) for _ in range(300)], seed=4),
    "whole": [(0, 0, 3 << 20)],
}

seeds = itertools.count(10)
directions = pytest.mark.parametrize("direction", DIRECTIONS)
opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@directions
@pytest.mark.parametrize("opcode,how", WAYS, ids=["-".join(way) for way in WAYS])
def test_every_call_moves_blocks_of_all_sizes_and_nothing_else(
    pair: Pair, direction: str, opcode: str, how: str
) -> None:
    seed = next(seeds)
    pair.fill(seed)
    pair.transfer(direction, opcode, how, scattered(SIZES, seed))


@directions
@opcodes
@pytest.mark.parametrize("how", WAYS_BY_OPCODE)
def test_every_call_with_an_opcode_moves_blocks_of_all_sizes_and_nothing_else(
    plain_pair: Pair, direction: str, opcode: str, how: str
) -> None:
    seed = next(seeds)
    plain_pair.fill(seed)
    plain_pair.transfer(direction, opcode, how, scattered(SIZES, seed))


@pytest.fixture(scope="module", params=combinations((FOR_CUDA, "ours"), ("default", "v1")))
def pair_with_arrays(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    yield from running(module_peers, request.param, 3 << 20)


@directions
@opcodes
@pytest.mark.parametrize("how", WAYS_OF_ARRAYS)
def test_every_call_with_arrays_or_regions_moves_blocks_of_all_sizes_and_nothing_else(
    pair_with_arrays: Pair, direction: str, opcode: str, how: str
) -> None:
    seed = next(seeds)
    pair_with_arrays.fill(seed)
    pair_with_arrays.transfer(direction, opcode, how, scattered(SIZES, seed))


@directions
@opcodes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_arrives_whatever_its_blocks_look_like(
    framed_pair: Pair, direction: str, opcode: str, layout: str
) -> None:
    framed_pair.fill(next(seeds))
    framed_pair.transfer(direction, opcode, "batch", LAYOUTS[layout])


@directions
@opcodes
def test_a_block_of_no_bytes_succeeds_and_moves_nothing(plain_pair: Pair, direction: str, opcode: str) -> None:
    plain_pair.fill(next(seeds))
    plain_pair.transfer(direction, opcode, "batch", [(5, 5, 100), (300, 400, 0), (500, 600, 77)])


def test_transfers_both_ways_at_once_do_not_mix(pair: Pair) -> None:
    pair.fill(next(seeds))
    pair.transfer_both_ways_at_once("batch", batches=3)


@directions
@opcodes
@pytest.mark.parametrize("place", ("one byte past the end", "before the start", "far outside", "wrapping"))
def test_a_range_that_the_target_did_not_register_is_refused_and_the_next_transfer_works(
    plain_pair: Pair, direction: str, opcode: str, place: str
) -> None:
    plain_pair.fill(next(seeds))
    local, remote = plain_pair.sides(direction)
    peer_address = {
        "one byte past the end": remote.address + remote.size - 63,
        "before the start": remote.address - 1,
        "far outside": 4096,
        "wrapping": 2**64 - 32,
    }[place]
    result = local.peer.move(remote.peer.name, opcode, [[local.address, peer_address, 64]], "sync")
    told = opcode == "read" or direction == "ours-to-theirs" or not plain_pair.they_report_early()
    assert result["code"] < 0 or not told
    plain_pair.transfer(direction, opcode, "batch", scattered([1, 4096, 70000]))


@pytest.fixture(scope="module", params=combinations(KINDS, ("default", "v1")))
def bulk_pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    yield from running(module_peers, request.param, 80 * MIB)


BULK = scattered([64 * MIB, 8 * MIB + 1, 5 * MIB - 1])


@directions
@opcodes
def test_bulk_arrives_at_odd_offsets(bulk_pair: Pair, direction: str, opcode: str) -> None:
    local, remote = bulk_pair.sides(direction)
    (local if opcode == "write" else remote).fill(next(seeds))
    bulk_pair.transfer(direction, opcode, "batch", BULK)
