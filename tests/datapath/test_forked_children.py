"""An engine that is closed while a child that was forked without exec lives, and has the descriptors of its sockets.

All time-outs are far beyond HUNG: whoever waits for one is killed, and the test fails.
"""

from __future__ import annotations

import pytest

from support.memory import Memory, addresses, transfer
from support.peer import Peer
from support.peers import Peers
from support.ports import free_range
from support.process import LeakCheck, until
from support.world import HUNG

MIB = 1 << 20
SIZE = 32 * MIB
REPEATS = 256  # blocks of that size in a transfer that the engine is closed in
PATIENT = {
    "MC_TRANSFER_TIMEOUT": "300",
    "MC_TCP_STATUS_TIMEOUT_SEC": "300",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "300",
    "MC_HANDSHAKE_CONNECT_TIMEOUT": "300",
}
FRAMINGS = {
    "version 2": {},
    "version 1": {"MC_TCP_PROTO": "1"},
    "no pool": {"MC_TCP_ENABLE_CONNECTION_POOL": "0"},
}

framings = pytest.mark.parametrize("framing", FRAMINGS)
opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


class Pair:
    """An initiator and a target, with memory each."""

    def __init__(self, peers: Peers, settings: dict[str, str]) -> None:
        self.initiator = peers(**PATIENT, **settings).create()
        self.target = peers(**PATIENT, **settings).create()
        self.near = self.initiator.memory(SIZE, 1)
        self.far = self.target.memory(SIZE, 2)

    def warm_up(self) -> None:
        """Have connections be there."""
        for opcode in ("read", "write"):
            transfer(self.near, self.far, opcode, [(0, 0, MIB)])


@pytest.fixture
def pair(start_peer: Peers, framing: str) -> Pair:
    return Pair(start_peer, FRAMINGS[framing])


def close_with_child(peer: Peer) -> None:
    peer.ask("fork")
    peer.ask("drop", HUNG, engine="main")


@framings
@opcodes
def test_a_transfer_to_a_target_that_was_closed_is_an_error(pair: Pair, opcode: str) -> None:
    pair.warm_up()
    close_with_child(pair.target)
    block = addresses(pair.near, pair.far, [(0, 0, 4096)])
    assert pair.initiator.move(pair.target.name, opcode, block, limit=HUNG)["code"] < 0


@framings
@opcodes
def test_a_transfer_amid_which_the_target_is_closed_is_an_error(pair: Pair, opcode: str) -> None:
    pair.warm_up()
    pair.target.ask("fork")
    blocks = addresses(pair.near, pair.far, [(0, 0, SIZE)] * REPEATS)
    pending = pair.initiator.start_move(pair.target.name, opcode, blocks)
    destination = pair.far if opcode == "write" else pair.near
    until(lambda: changed(destination), HUNG, "the transfer is under way")
    pair.target.ask("drop", HUNG, engine="main")
    assert pending.result(HUNG)["code"] < 0


def changed(memory: Memory) -> bool:
    """Tell whether the last bytes are other ones than they were."""
    at = memory.size - 16
    tail: str = memory.peer.ask("peek", region=memory.region, offset=at, length=16)
    return tail != memory.model[at:].hex()


@framings
def test_a_target_forgets_an_initiator_that_was_closed(pair: Pair) -> None:
    leaks = LeakCheck(pair.target)
    pair.warm_up()
    close_with_child(pair.initiator)
    leaks.check()


@framings
def test_a_probe_of_an_engine_that_was_closed_says_so(pair: Pair) -> None:
    assert pair.initiator.call("send_probe", pair.target.name) == 0
    close_with_child(pair.target)
    assert pair.initiator.call("send_probe", pair.target.name, limit=HUNG) == -102


def test_a_new_engine_gets_the_ports_of_the_one_that_was_closed(start_peer: Peers) -> None:
    """The handshake port and the data port are the only two that it may have."""
    target = start_peer(**PATIENT, **free_range(2)).create()
    far = target.memory(MIB, 1)
    initiator = start_peer(**PATIENT).create()
    near = initiator.memory(MIB, 2)
    transfer(near, far, "write", [(0, 0, MIB)])
    close_with_child(target)
    target.create()
