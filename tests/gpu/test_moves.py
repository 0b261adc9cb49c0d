"""READ and WRITE between GPU memory and every other kind, in two processes, compared byte for byte with what was around
the blocks; a third process with GPU memory must not notice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest

from support import devices, machine
from support.devices import spread
from support.machine import LAYOUTS, MIB, SIZE, SIZES, check, fill, gpu
from support.memory import Memory, transfer
from support.peer import Peer
from support.peers import Peers
from support.tensors import ALLOCATOR, EXPANDABLE

Case = TypeVar("Case")

TCP, SAME_HOST = {"KVFERRY_SAME_HOST": "0"}, {"KVFERRY_SAME_HOST": "1"}
WAYS = {
    "tcp": TCP,
    "same-host": SAME_HOST,
    "expandable-segments": {**TCP, ALLOCATOR: EXPANDABLE},
    "by-the-kernel": {**TCP, "KVFERRY_DEVICE_COPY": "kernel"},
    "in-batches": {**TCP, "KVFERRY_DEVICE_COPY": "batch"},
    "blocks-one-by-one": {**TCP, "KVFERRY_STAGING_GATHER_BELOW": "0"},
}
PINNED = "cuda-pinned:0" if machine.why_no_torch() else "torch:pinned"
OTHERS = ("host", PINNED, "managed:0", "virtual:0", "npu:0")
PAIRS = [(gpu(), gpu()), (gpu(), "host"), ("host", gpu())]
OTHER_PAIRS = [pair for other in OTHERS[1:] for pair in ((gpu(), other), (other, gpu()))]
SOME_LAYOUTS = ("all sizes, scattered", "many and tiny", "whole")
ALL = (gpu(), *OTHERS)
LARGE = 64 * MIB  # of a block; more than the staging blocks of a device

ways = pytest.mark.parametrize("ends", WAYS, indirect=True)
tcp = pytest.mark.parametrize("ends", ("tcp",), indirect=True)
opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@dataclass
class Ends:
    """An engine at either end, and a process that only has GPU memory."""

    way: str
    near: Peer
    far: Peer
    bystander: Memory
    nears: dict[str, Memory]
    fars: dict[str, Memory]

    @property
    def memories(self) -> Sequence[Memory]:
        return (*self.nears.values(), *self.fars.values())

    def on_tcp(self, all_of_them: Sequence[Case], some: Sequence[Case]) -> Sequence[Case]:
        """What is tried on the way that most transfers go, and what on the others."""
        return all_of_them if self.way == "tcp" else some

    def move(self, near: str, far: str, opcode: str, layouts: Iterable[str], seeds: Iterator[int]) -> None:
        """Move blocks in each of the layouts between two places, each time of other bytes."""
        local, remote = self.nears[near], self.fars[far]
        for layout in layouts:
            fill((local, remote), next(seeds))
            transfer(local, remote, opcode, LAYOUTS[layout])
            check((local, remote, self.bystander))


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Ends]:
    settings = WAYS[request.param]
    if ALLOCATOR in settings:
        machine.need_torch()
    near, far = (machine.start(module_peers, **settings).create() for _ in range(2))
    other = machine.start(module_peers)
    places = [{place: peer.memory(SIZE, place=place) for place in ALL} for peer in (near, far)]
    yield Ends(request.param, near, far, other.memory(MIB, 99, register=False, place="cuda:0"), *places)
    for peer in (near, far, other):
        peer.kill()


@ways
@opcodes
@pytest.mark.parametrize("near,far", PAIRS)
def test_blocks_arrive_and_nothing_else_is_touched(
    ends: Ends, near: str, far: str, opcode: str, seeds: Iterator[int]
) -> None:
    ends.move(near, far, opcode, ends.on_tcp(list(LAYOUTS), SOME_LAYOUTS), seeds)


@tcp
@opcodes
@pytest.mark.parametrize("near,far", OTHER_PAIRS)
def test_blocks_move_to_and_from_other_kinds_of_memory(
    ends: Ends, near: str, far: str, opcode: str, seeds: Iterator[int]
) -> None:
    ends.move(near, far, opcode, SOME_LAYOUTS, seeds)


@ways
@opcodes
def test_a_batch_mixes_kinds_of_memory_and_sizes(ends: Ends, opcode: str, seeds: Iterator[int]) -> None:
    lengths = [*SIZES[:-2], *(1 + 97 * i % 30_000 for i in range(150))]
    for how in ends.on_tcp(("sync", "batch", "async"), ("batch",)):
        seed = next(seeds)
        fill(ends.memories, seed)
        devices.transfer(opcode, spread(lengths, list(ends.nears.values()), list(ends.fars.values()), seed), how)
        check((*ends.memories, ends.bystander))


@ways
@opcodes
def test_a_large_block_goes_through_in_pieces(ends: Ends, opcode: str, seeds: Iterator[int]) -> None:
    """Of a tensor that PyTorch maps piece by piece, too, where it does."""
    for near, far in ends.on_tcp(PAIRS, PAIRS[:1]):
        local, remote = (peer.memory(LARGE + 4099, place=place) for peer, place in ((ends.near, near), (ends.far, far)))
        fill((local, remote), next(seeds))
        transfer(local, remote, opcode, [(5, 9, LARGE)])
        check((local, remote))
        for memory in (local, remote):
            assert memory.peer.call("unregister_memory", memory.address) == 0
            memory.peer.ask("free_region", region=memory.region)


@ways
@opcodes
def test_blocks_move_between_places_of_one_engine(ends: Ends, opcode: str, seeds: Iterator[int]) -> None:
    """Without a connection: the engine's own segment is copied."""
    for near, far in ((gpu(), "host"), (PINNED, gpu())):
        local, remote = ends.nears[near], ends.nears[far]
        fill((local, remote), next(seeds))
        transfer(local, remote, opcode, LAYOUTS["all sizes, scattered"])
        check((local, remote))


@opcodes
def test_memory_of_two_gpus_moves_in_one_batch(module_peers: Peers, opcode: str, seeds: Iterator[int]) -> None:
    seed = next(seeds)
    machine.need_gpus(2)
    near, far = (machine.start(module_peers, **TCP).create() for _ in range(2))
    nears, fars = ([peer.memory(SIZE, place=gpu(index)) for index in range(2)] for peer in (near, far))
    fill([*nears, *fars], seed)
    devices.transfer(opcode, spread([*SIZES, *SIZES[:-2]], nears, fars, seed))
    check([*nears, *fars])


def test_expandable_segments_are_what_is_tested(module_peers: Peers) -> None:
    """Else PyTorch does not take the setting any more, and the tests above say less than they seem to."""
    machine.need_torch()
    peer = machine.start(module_peers, **{ALLOCATOR: EXPANDABLE}).create()
    peer.memory(LARGE, register=False, place=gpu())
    assert peer.ask("expandable_segments") > 0
