"""READ and WRITE between the memory of host, NPUs and GPUs on either side, byte for byte, with what is around them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from support import devices
from support.devices import DEVICES, Release, Side, spread
from support.memory import transfer
from support.peers import Peers
from support.spans import adjacent, adjacent_near_only, scattered

pytestmark = pytest.mark.devices

MIB = 1 << 20
SIZE = 3 * MIB + 4099
SIZES = (1, 2, 3, 7, 63, 64, 65, 511, 4095, 4096, 4097, 16384, 65535, 65536, 65537, 262147, 2 * MIB + 1)
LAYOUTS = {
    "one byte": [(5, 9, 1)],
    "all sizes, scattered": scattered(SIZES),
    "small and adjacent": adjacent([4096] * 300),
    "small, adjacent at the initiator only": adjacent_near_only([16384, 5, 4096, 70001] * 12),
    "many and tiny": scattered([random.Random(3).randrange(1, 600) for _ in range(400)], seed=4),
    "aligned alike": [(64 * i, 64 * i, 64) for i in range(100)],
    "whole": [(3, 1, SIZE - 3)],
    "nothing, between others": [(5, 5, 100), (300, 400, 0), (500, 600, 77)],
}

ONE, TWO = "all sizes, scattered", ("all sizes, scattered", "nothing, between others")

# Between which places blocks move, and how they lie there: in all ways between the host and each kind of device, and
# within a kind.
PAIRS = {
    **dict.fromkeys((("npu:0", "host"), ("host", "npu:1"), ("npu:0", "npu:1")), LAYOUTS),
    **dict.fromkeys((("cuda:0", "host"), ("host", "cuda:1"), ("cuda:0", "cuda:1")), LAYOUTS),
    **dict.fromkeys((("npu:0", "cuda:1"), ("cuda:0", "npu:1"), ("host", "host")), TWO),
}
OTHERS = (("managed:0", "npu:1"), ("host", "managed:0"), ("virtual:0", "cuda:1"), ("npu:0", "virtual:0"))
SIDES = ("newer-v2", "newer-v1", "older-v2")
ARRANGEMENTS = [
    *((SIDES[0], *pair, layout) for pair, layouts in PAIRS.items() for layout in layouts),
    *((SIDES[0], *pair, layout) for pair in OTHERS for layout in (ONE, "whole")),
    *((sides, *pair, ONE) for sides in SIDES[1:] for pair in PAIRS),
]

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@dataclass
class Sides:
    near: Side
    far: Side

    def fill(self, seed: int) -> None:
        self.near.fill(2 * seed)
        self.far.fill(2 * seed + 1)

    def check(self) -> None:
        self.near.check()
        self.far.check()


@pytest.fixture(scope="module", params=SIDES)
def sides(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Sides]:
    """Two engines with memory at every place, by releases of the libraries and framing; they must leave nothing."""
    release, framing = request.param.split("-")
    cann: Release = request.getfixturevalue(release)
    settings = {**cann.settings, **({"MC_TCP_PROTO": "1"} if framing == "v1" else {})}
    near, far = (module_peers("ours", **settings).create() for _ in range(2))
    yield Sides(Side(near, SIZE, cann), Side(far, SIZE, cann))
    for peer in (near, far):
        devices.end(peer)
        peer.kill()


@opcodes
@pytest.mark.parametrize("sides,near,far,layout", ARRANGEMENTS, indirect=["sides"])
def test_blocks_arrive_and_nothing_else_is_touched(
    sides: Sides, near: str, far: str, layout: str, opcode: str, seed: int
) -> None:
    local, remote = sides.near[near], sides.far[far]
    local.fill(2 * seed)
    remote.fill(2 * seed + 1)
    transfer(local, remote, opcode, LAYOUTS[layout])
    local.check()
    remote.check()


@opcodes
@pytest.mark.parametrize("how", ("sync", "batch", "async"))
def test_a_batch_mixes_places_devices_and_sizes(sides: Sides, how: str, opcode: str, seed: int) -> None:
    sides.fill(seed)
    lengths = [*SIZES[:-1], *(random.Random(seed).randrange(1, 30_000) for _ in range(150)), MIB + 1]
    nears, fars = (list(side.memories.values()) for side in (sides.near, sides.far))
    devices.transfer(opcode, spread(lengths, nears, fars, seed), how)
    sides.check()


@opcodes
@pytest.mark.parametrize("far", ("host", *DEVICES))
@pytest.mark.parametrize("near", ("npu:0", "cuda:0"))
def test_blocks_move_between_places_of_one_engine(sides: Sides, near: str, far: str, opcode: str, seed: int) -> None:
    """Without a connection: the engine's own segment is copied."""
    sides.near.fill(seed)
    kind, device = near.split(":")
    local, remote = sides.near[near if near != far else f"{kind}-pinned:{device}"], sides.near[far]
    transfer(local, remote, opcode, LAYOUTS["all sizes, scattered"])
    sides.near.check()
