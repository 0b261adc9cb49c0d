"""A WRITE to a target that is stopped is given up, and the next one, to a target that has gone on, arrives."""

from __future__ import annotations

from support.couple import Couple
from support.peers import Peers
from support.process import stopped
from support.world import GIVEN_UP

MIB = 1 << 20


def test_a_write_to_a_target_that_is_stopped_is_given_up_and_the_next_one_arrives(
    start_peer: Peers, memory: str
) -> None:
    couple = Couple(start_peer, memory)
    couple.transfer("write")
    lost = couple.target.memory(MIB)  # it may be written late
    with stopped(couple.target):
        result = couple.initiator.move(couple.target.name, "write", [[couple.near.address, lost.address, MIB]])
    assert result["code"] < 0
    assert result["seconds"] < GIVEN_UP
    couple.transfer("write", seed=3)
