"""Mooncake with Mooncake: where this fails, a failure of the other tests says nothing about our engine."""

from __future__ import annotations

import pytest

from support.memory import transfer
from support.peers import Peers
from support.spans import scattered
from support.venvs import FOR_CUDA, VERSIONS


@pytest.mark.parametrize("version", (*VERSIONS, FOR_CUDA))
def test_the_harness_moves_bytes_between_two_mooncake_peers(start_peer: Peers, version: str) -> None:
    initiator, target = start_peer(version).create(), start_peer(version).create()
    near, far = initiator.memory(1 << 20, 1), target.memory(1 << 20, 2)
    for opcode in ("write", "read"):
        transfer(near, far, opcode, scattered([1, 4096, 70001]))
        far.check_soon()
        near.check()
