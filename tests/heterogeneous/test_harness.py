"""The tests' own memory of devices: where this fails, a failure of the other tests says nothing about our engine."""

from __future__ import annotations

import pytest

from support import devices
from support.devices import PLACES, check_nothing_left, simulate
from support.peers import Peers

pytestmark = pytest.mark.devices

SIZE = 3 * 4096 + 5
kinds = pytest.mark.parametrize("kind", devices.VARIABLES)


@pytest.mark.parametrize("place", PLACES)
def test_memory_at_every_place_is_filled_and_compared(start_peer: Peers, place: str) -> None:
    peer = devices.start(start_peer)
    memory = peer.memory(SIZE, 1, register=False, place=place)
    memory.check()
    peer.ask("poke", region=memory.region, offset=SIZE - 1, data="%02x" % (memory.model[-1] ^ 1))
    with pytest.raises(AssertionError, match=f"first at byte {SIZE - 1}"):
        memory.check()


@kinds
def test_what_is_not_given_back_is_reported(start_peer: Peers, kind: str) -> None:
    peer = devices.start(start_peer)
    peer.memory(SIZE, 1, register=False, place=f"{kind}:1")
    with pytest.raises(AssertionError, match="device_allocations"):
        check_nothing_left(simulate(peer, kind, "report"))
    peer.ask("free_regions")
    check_nothing_left(simulate(peer, kind, "report"))


@pytest.mark.parametrize("kind,function", (("npu", "aclrtMemcpy"), ("cuda", "cuMemcpyDtoH_v2")))
def test_faults_and_misuse_are_told(start_peer: Peers, kind: str, function: str) -> None:
    peer = devices.start(start_peer)
    memory = peer.memory(SIZE, 1, register=False, place=f"{kind}:1")
    simulate(peer, kind, "faults", f"{function}:2")
    memory.check()
    with pytest.raises(AssertionError, match=f"{function} of .* failed with"):
        memory.check()
    simulate(peer, kind, "faults", "")
    memory.check()
    with pytest.raises(AssertionError, match="does not understand"):
        simulate(peer, kind, "faults", "no such thing")
