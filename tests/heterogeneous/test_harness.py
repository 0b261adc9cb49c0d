"""The tests' own NPU memory: where this fails, a failure of the other tests says nothing about our engine."""

from __future__ import annotations

import pytest

from support import npus
from support.npus import PLACES, check_nothing_left, simulate
from support.peers import Peers

SIZE = 3 * 4096 + 5


@pytest.mark.parametrize("place", PLACES)
def test_memory_at_every_place_is_filled_and_compared(start_peer: Peers, place: str) -> None:
    peer = npus.start(start_peer)
    memory = peer.memory(SIZE, 1, register=False, place=place)
    memory.check()
    peer.ask("poke", region=memory.region, offset=SIZE - 1, data="%02x" % (memory.model[-1] ^ 1))
    with pytest.raises(AssertionError, match=f"first at byte {SIZE - 1}"):
        memory.check()


def test_what_is_not_given_back_is_reported(start_peer: Peers) -> None:
    peer = npus.start(start_peer)
    peer.memory(SIZE, 1, register=False, place="npu:1")
    with pytest.raises(AssertionError, match="device_allocations"):
        check_nothing_left(simulate(peer, "report"))
    peer.ask("free_regions")
    check_nothing_left(simulate(peer, "report"))


def test_faults_and_misuse_are_told(start_peer: Peers) -> None:
    peer = npus.start(start_peer)
    memory = peer.memory(SIZE, 1, register=False, place="npu:1")
    simulate(peer, "faults", "aclrtMemcpy:2")
    memory.check()
    with pytest.raises(AssertionError, match=r"aclrtMemcpy: error 507899: .*a fault on purpose"):
        memory.check()
    simulate(peer, "faults", "")
    memory.check()
    with pytest.raises(AssertionError, match="does not understand"):
        simulate(peer, "faults", "no such thing")
