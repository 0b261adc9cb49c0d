"""Engines on one host: which of them copy from each other's memory, and which use TCP all the same."""

from __future__ import annotations

import os

import pytest

from support.couple import SIZE, SIZES, Couple, met_by
from support.memory import Memory, addresses, transfer
from support.paths import SAMEHOST, TCP, VARIABLE
from support.peer import Peer
from support.peers import Peers, unavailable
from support.process import same_host_connections, stopped
from support.spans import scattered
from support.world import HUNG

NOBODY, SOMEBODY = 65534, 65533  # users


def test_engines_on_one_host_meet_at_the_socket_for_them(start_peer: Peers) -> None:
    couple = Couple(start_peer)
    couple.transfer("write")
    assert same_host_connections()
    assert couple.path == SAMEHOST


def test_a_read_needs_nothing_of_the_target_once_a_lane_knows_its_region(start_peer: Peers) -> None:
    couple = Couple(start_peer, MC_TCP_LANES_PER_PEER="1")
    couple.transfer("read")
    with stopped(couple.target):
        blocks = addresses(couple.near, couple.far, scattered(SIZES[:8], 5))
        result = couple.initiator.move(couple.target.name, "read", blocks, "sync", limit=HUNG)
    assert result["code"] == 0


def become(peer: Peer, user: int, dumpable: bool) -> Peer:
    """Have a process be another user's. Another process of that user may look into it where it is dumpable."""
    if os.geteuid() != 0:
        unavailable("only root can start processes of several users: run the tests as root")
    peer.ask("become", user=user, dumpable=dumpable)
    return peer.create()


def check_transfers(near: Memory, far: Memory) -> None:
    for opcode in ("write", "read", "write"):
        near.fill(7)
        far.fill(8)
        transfer(near, far, opcode, scattered(SIZES))
        near.check()
        far.check()


@pytest.mark.parametrize("dumpable", (True, False), ids=("reading allowed", "reading forbidden"))
def test_processes_of_one_user_meet_on_their_host_whether_or_not_they_may_read_memory(
    start_peer: Peers, dumpable: bool
) -> None:
    initiator, target = (become(start_peer(), NOBODY, dumpable) for _ in range(2))
    far = target.memory(SIZE)
    check_transfers(initiator.memory(SIZE), far)
    assert met_by(far) == SAMEHOST


def test_processes_of_different_users_use_tcp(start_peer: Peers) -> None:
    initiator, target = become(start_peer(), NOBODY, True), become(start_peer(), SOMEBODY, True)
    far = target.memory(SIZE)
    check_transfers(initiator.memory(SIZE), far)
    assert met_by(far) == TCP


@pytest.mark.parametrize("off", ({VARIABLE: "0"}, {"MC_FORCE_TCP": "1"}), ids=("off", "force tcp"))
def test_an_engine_where_it_is_off_uses_tcp_either_way(start_peer: Peers, off: dict[str, str]) -> None:
    one, other = start_peer(**off).create(), start_peer().create()
    near, far = one.memory(SIZE), other.memory(SIZE)
    check_transfers(near, far)
    check_transfers(far, near)
    assert [met_by(near), met_by(far)] == [TCP, TCP]
