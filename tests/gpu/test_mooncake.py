"""Mooncake's build for CUDA as the peer, memory of a GPU or the host's, started by either side: every byte is compared.

KVFERRY_MOONCAKE_CUDA names a folder with mooncake/engine.so of its wheel, or an interpreter that has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from support import machine, unpacked
from support.machine import LAYOUTS, SIZE, gpu
from support.memory import Memory
from support.pairs import DIRECTIONS, SETTINGS, Pair
from support.peer import Peer, environment
from support.peers import Peers
from support.venvs import Unavailable

KIND = "0.3.13"  # what it behaves like
OURS, THEIRS = (gpu(), "npu:0", "host"), (gpu(), "host")
Places = tuple[str, str]
PLACES = [(ours, theirs) for ours in OURS for theirs in THEIRS if gpu() in (ours, theirs)]

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


class End:
    """An engine with memory at places, made when it is asked for."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._memories: dict[str, Memory] = {}

    def __getitem__(self, place: str) -> Memory:
        if place not in self._memories:
            self._memories[place] = self._peer.memory(SIZE, place=place)
        return self._memories[place]


@dataclass
class Ends:
    """One of ours and one of theirs, which has a setting."""

    setting: str
    ours: End
    theirs: End

    def pair(self, places: Places) -> Pair:
        return Pair(KIND, "default", self.ours[places[0]], self.theirs[places[1]])


@pytest.fixture(scope="module", params=("default", "no-pool"))
def ends(
    request: pytest.FixtureRequest, module_peers: Peers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ends]:
    try:
        found = unpacked.mooncake()
    except Unavailable as e:
        pytest.skip(f"no peer of another make: {e}")
    settings = {"MC_FORCE_TCP": "1", **SETTINGS[request.param], **found.settings}
    log = tmp_path_factory.mktemp("mooncake") / "log"
    theirs = Peer("Mooncake for CUDA", found.python, environment(settings, ours=False), log)
    ours = machine.start(module_peers).create()
    try:
        theirs.create()
        yield Ends(request.param, End(ours), End(theirs))
    finally:
        theirs.kill()
        ours.kill()


@opcodes
@pytest.mark.parametrize("places", PLACES, ids="-".join)
def test_a_batch_arrives_whatever_its_blocks_look_like(
    ends: Ends, places: Places, opcode: str, seeds: Iterator[int]
) -> None:
    """Without their pool of connections, some of what blocks may look like."""
    pair = ends.pair(places)
    for layout in LAYOUTS if ends.setting == "default" else ("all sizes, scattered", "many and tiny"):
        for direction in DIRECTIONS:
            pair.fill(next(seeds))
            pair.transfer(direction, opcode, "batch", LAYOUTS[layout])


@opcodes
def test_every_way_of_waiting_sees_the_bytes(ends: Ends, opcode: str, seeds: Iterator[int]) -> None:
    pair = ends.pair((gpu(), gpu()))
    for how in ("sync", "async"):
        for direction in DIRECTIONS:
            pair.fill(next(seeds))
            pair.transfer(direction, opcode, how, LAYOUTS["all sizes, scattered"])
