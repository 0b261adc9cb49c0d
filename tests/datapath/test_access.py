"""What the owner of memory lets peers do with it moves bytes, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from support import devices
from support.memory import Memory, addresses, transfer
from support.peer import Peer
from support.peers import Peers
from support.process import soon
from support.world import HUNG, QUICK

SIZE = (1 << 20) + 77
SPAN = (3, 5, SIZE - 9)
ALLOWED = {"none": (), "read": ("read",), "write": ("write",), "read-write": ("read", "write")}

accesses = pytest.mark.parametrize("access", ALLOWED)


@dataclass
class Pair:
    """An initiator with memory of the host, and the owner of memory at the place under test."""

    initiator: Peer
    owner: Peer
    near: Memory
    far: Memory

    def fill(self) -> None:
        self.near.fill(1)
        self.far.fill(2)

    def check(self) -> None:
        self.near.check()
        self.far.check()

    def refuse(self, opcode: str) -> None:
        """Try a transfer, which must fail."""
        blocks = addresses(self.near, self.far, [SPAN])
        assert self.initiator.move(self.owner.name, opcode, blocks)["code"] == -1

    def try_all(self, access: str) -> None:
        """Transfer in both directions, twice: the second time the initiator knows what is not allowed."""
        for opcode in ("write", "read") * 2:
            self.fill()
            if opcode in ALLOWED[access]:
                transfer(self.near, self.far, opcode, [SPAN])
            else:
                self.refuse(opcode)
            self.check()


@pytest.fixture(scope="module")
def pair(module_peers: Peers, memory: str) -> Iterator[Pair]:
    owner, initiator = module_peers(**QUICK, **devices.needed(memory)).create(), module_peers(**QUICK).create()
    yield Pair(initiator, owner, initiator.memory(SIZE), owner.memory(SIZE, register=False, place=memory))
    if memory != "host":
        devices.end(owner)


def registered_for(memory: Memory, access: str) -> None:
    assert memory.peer.call("register_memory", memory.address, memory.size, access=access) == 0


@accesses
def test_peers_do_with_memory_what_its_owner_allows(pair: Pair, access: str) -> None:
    registered_for(pair.far, access)
    pair.try_all(access)
    assert pair.owner.call("unregister_memory", pair.far.address) == 0


@accesses
def test_a_batch_of_ranges_is_registered_for_what_its_owner_allows(pair: Pair, access: str) -> None:
    far = pair.far
    assert pair.owner.call("batch_register_memory", [far.address], [far.size], access=access) == 0
    pair.try_all(access)
    assert pair.owner.call("batch_unregister_memory", [far.address]) == 0


def test_memory_is_registered_again_for_something_else(pair: Pair) -> None:
    """The initiator has used it before, and may remember what it was allowed then."""
    for before, access in [("read-write", "read"), ("read", "write"), ("write", "read-write"), ("read-write", "none")]:
        registered_for(pair.far, before)
        for opcode in ALLOWED[before]:
            pair.fill()
            transfer(pair.near, pair.far, opcode, [SPAN])
        assert pair.owner.call("unregister_memory", pair.far.address) == 0
        registered_for(pair.far, access)
        pair.fill()
        for opcode in {"write", "read"}.difference(ALLOWED[access]):
            pair.refuse(opcode)
        pair.far.check()
        pair.try_all(access)
        assert pair.owner.call("unregister_memory", pair.far.address) == 0


@pytest.mark.parametrize(("access", "opcode"), [("read", "write"), ("write", "read")])
def test_the_initiators_log_says_who_refused_what_and_why(
    module_peers: Peers, pair: Pair, access: str, opcode: str
) -> None:
    registered_for(pair.far, access)
    fresh = module_peers(**QUICK).create()
    near = fresh.memory(SIZE)
    assert fresh.move(pair.owner.name, opcode, addresses(near, pair.far, [SPAN]))["code"] == -1
    told = (pair.owner.name, f"{pair.far.address + SPAN[1]:#x}", f"its owner does not let peers {opcode} it")
    assert soon(lambda: all(part in fresh.log() for part in told), HUNG), fresh.log()
    assert pair.owner.call("unregister_memory", pair.far.address) == 0
    fresh.kill()


def test_transfers_of_the_own_segment_keep_to_its_access(pair: Pair) -> None:
    here = pair.owner.memory(SIZE)  # for everything
    for access, allowed in ALLOWED.items():
        registered_for(pair.far, access)
        for opcode in ("write", "read"):
            here.fill(1)
            pair.far.fill(2)
            if opcode in allowed:
                transfer(here, pair.far, opcode, [SPAN])
            else:
                assert pair.owner.move(pair.owner.name, opcode, addresses(here, pair.far, [SPAN]))["code"] == -1
            here.check()
            pair.far.check()
            transfer(pair.far, here, opcode, [SPAN])  # as local memory it is bound by nothing
            here.check()
            pair.far.check()
        assert pair.owner.call("unregister_memory", pair.far.address) == 0
    assert pair.owner.call("unregister_memory", here.address) == 0
