"""Random transfers from many threads between the memory of host, NPUs and GPUs of two engines, against a plain model.

The streams of the simulators run as late, and as differently from each other, as they may: a copy or a frame that does
not wait for what it must wait for moves the wrong bytes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from support import devices
from support.devices import Move, Release, Side
from support.memory import Memory
from support.peer import Pending
from support.peers import Peers

pytestmark = pytest.mark.devices

SIZE = 3 << 20
ROUNDS = 4
BATCHES = 8  # at once in a round, each from a thread of its own
BLOCKS = 400  # of a round
POOLS: dict[str, dict[str, str]] = {
    "default pool": {},
    "small pool": {"KVFERRY_STAGING_BLOCK_SIZE": "131072", "KVFERRY_STAGING_POOL_SIZE": "1048576"},
}
WAYS = ("sync", "batch", "async")
LENGTHS = ((1, 64), (1, 5000), (1, 5000), (60_000, 70_000), (1, 300_000))  # ranges that lengths are drawn from


def cut(memories: Sequence[Memory], lengths: Sequence[int], chance: random.Random) -> list[tuple[Memory, int]]:
    """Find a place for each length, in a random memory: no two overlap, many touch. A length without one gets none."""
    ends = {memory: chance.randrange(200) for memory in memories}
    found = []
    for length in lengths:
        memory = chance.choice([m for m in memories if ends[m] + length <= m.size] or memories)
        found.append((memory, ends[memory]))
        ends[memory] += length + chance.choice((0, 0, 1, 64, chance.randrange(500)))
    return found


def draw(near: Side, far: Side, chance: random.Random) -> list[Move]:
    """Draw blocks none of which touches a byte of another."""
    lengths = [chance.randrange(*chance.choice(LENGTHS)) for _ in range(BLOCKS)]
    sides = [cut(list(side.memories.values()), lengths, chance) for side in (near, far)]
    moves = [(m, n, (a, b, length)) for (m, a), (n, b), length in zip(*sides, lengths)]
    fitting = [move for move in moves if move[2][0] + move[2][2] <= SIZE and move[2][1] + move[2][2] <= SIZE]
    chance.shuffle(fitting)
    return fitting


def start_batches(near: Side, far: Side, drawn: Sequence[Move], chance: random.Random) -> list[Pending]:
    """Start the blocks in batches of each direction, from either side, all at once."""
    pending = []
    for i in range(BATCHES):
        moves, opcode = drawn[i::BATCHES], ("read", "write")[i & 1]
        initiator, target = near, far
        if i & 2:
            moves = [(n, m, (b, a, length)) for m, n, (a, b, length) in moves]
            initiator, target = far, near
        how = chance.choice(WAYS)
        pending.append(initiator.peer.start_move(target.peer.name, opcode, devices.blocks(moves), how))
        devices.apply(opcode, moves)
    return pending


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("seed", (1, 2))
def test_batches_at_once_do_to_all_memories_what_the_model_says(
    start_peer: Peers, release: Release, seed: int, pool: str
) -> None:
    chance = random.Random(seed)
    near, far = (
        Side(start_peer("ours", **release.settings, **POOLS[pool], KVFERRY_SIM_SEED=number).create(), SIZE, release)
        for number in (str(seed), str(seed + 100))
    )
    near.fill(seed)
    far.fill(seed + 100)
    for _ in range(ROUNDS):
        pending = start_batches(near, far, draw(near, far, chance), chance)
        assert [p.result()["code"] for p in pending] == [0] * len(pending)
        near.check()
        far.check()
    devices.end(near.peer)
    devices.end(far.peer)
