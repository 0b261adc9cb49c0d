"""A malicious peer whose descriptor leads to somebody else."""

from __future__ import annotations

from support import paths, wire
from support.memory import addresses, transfer
from support.peers import Peers
from support.rawpeer import RawTarget, stall
from support.world import GIVEN_UP, QUICK

SIZE = 4096
ON_HOST = {**QUICK, paths.VARIABLE: "1"}


def test_a_descriptor_that_names_the_socket_of_another_engine_of_the_host_is_not_followed(start_peer: Peers) -> None:
    near, victim = (start_peer(MC_LOG_LEVEL="INFO", **ON_HOST).create() for _ in range(2))
    here, there = near.memory(SIZE, 1), victim.memory(SIZE, 2)
    named = wire.descriptor(victim.name)["kvferry"]
    with RawTarget(stall, changes={"kvferry": named}) as malicious:
        moved = near.move(malicious.name, "write", addresses(here, there, [(0, 0, SIZE)]), limit=2 * GIVEN_UP)
        assert moved["code"] != 0
        assert near.logs("another engine of this host"), near.log()
    there.check()
    transfer(here, there, "write", [(0, 0, SIZE)])
    there.check()
