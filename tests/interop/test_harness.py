"""Mooncake with Mooncake: where this fails, a failure of the other tests says nothing about our engine."""

from __future__ import annotations

import signal

import pytest

from support.memory import transfer
from support.pairs import CRASHING, Pair, running
from support.peer import EXIT_LIMIT, PeerError
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


def test_a_peer_of_mooncakes_that_crashes_is_started_again_once(module_peers: Peers) -> None:
    for pair in running(module_peers, (CRASHING[-1], "default"), 1 << 20):
        crash(pair)
        pair.transfer("ours-to-theirs", "write", "batch", scattered([1, 4096]))
        crash(pair)
        with pytest.raises(PeerError):
            pair.fill(1)


@pytest.mark.parametrize("kind", ("ours", FOR_CUDA))
def test_a_peer_that_must_not_crash_is_not_started_again(module_peers: Peers, kind: str) -> None:
    for pair in running(module_peers, (kind, "default"), 1 << 20):
        crash(pair)
        with pytest.raises((PeerError, AssertionError)):
            pair.transfer("ours-to-theirs", "write", "batch", scattered([1, 4096]))


def crash(pair: Pair) -> None:
    pair.theirs.peer.process.send_signal(signal.SIGSEGV)
    pair.theirs.peer.process.wait(EXIT_LIMIT)
