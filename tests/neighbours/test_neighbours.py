"""Engines on one host, of one user: bytes pass from memory to memory, and whoever fails harms nobody else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from support import wire
from support.memory import Memory, addresses, transfer
from support.peer import Peer
from support.peers import Peers, unavailable
from support.process import LeakCheck, connections_to, cpu_use, same_host_connections
from support.spans import scattered
from support.world import GIVEN_UP, HUNG, QUICK

MIB = 1 << 20
SIZE = 8 * MIB
SIZES = (1, 2, 7, 8, 100, 1023, 2048, 4095, 4096, 4097, 65536, 65537, 262147, 1048577, 2097155)
WAYS = [("write", how) for how in ("sync", "batch", "async", "submit")]
WAYS += [("read", how) for how in ("sync", "batch", "async")]
NEIGHBOURS = {**QUICK, "KVFERRY_SAME_HOST": "1"}
IDLE_CPU = 0.2  # seconds of processor time within one second
NOBODY, SOMEBODY = 65534, 65533  # users

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


class Couple:
    """An initiator and a target, with memory each."""

    def __init__(self, peers: Peers, **settings: str) -> None:
        self.initiator = peers(**NEIGHBOURS, **settings).create()
        self.target = peers(**NEIGHBOURS).create()
        self.near = self.initiator.memory(SIZE, 1)
        self.far = self.target.memory(SIZE, 2)

    @property
    def over_tcp(self) -> bool:
        return bool(connections_to(wire.data_address(self.target.name)[1]))

    def transfer(self, opcode: str, how: str = "batch", seed: int = 0) -> None:
        """Move blocks, and compare both memories as a whole."""
        transfer(self.near, self.far, opcode, scattered(SIZES, seed), how)
        self.near.check()
        self.far.check()


@pytest.fixture
def couple(start_peer: Peers) -> Iterator[Couple]:
    couple = Couple(start_peer)
    yield couple
    assert not couple.over_tcp


@pytest.mark.parametrize("opcode,how", WAYS, ids=["-".join(way) for way in WAYS])
def test_every_call_moves_blocks_of_all_sizes_and_nothing_else(couple: Couple, opcode: str, how: str) -> None:
    for seed in range(3):
        couple.near.fill(10 + seed)
        couple.far.fill(20 + seed)
        couple.transfer(opcode, how, seed)
    assert same_host_connections()


def test_both_read_and_write_each_other_at_once(couple: Couple) -> None:
    half = SIZE // 2
    back = [[couple.far.address, couple.near.address, half]] * 8
    there = [[couple.near.address + half, couple.far.address + half, half]] * 8
    pending = [
        couple.target.start_move(couple.initiator.name, "write", back),
        couple.initiator.start_move(couple.target.name, "write", there),
    ]
    assert [each.result(HUNG)["code"] for each in pending] == [0, 0]
    couple.near.model[:half] = couple.far.model[:half]
    couple.far.model[half:] = couple.near.model[half:]
    couple.near.check()
    couple.far.check()


def test_idle_neighbours_use_no_processor(couple: Couple) -> None:
    couple.transfer("read")
    couple.transfer("write")
    assert max(cpu_use([couple.initiator.pid, couple.target.pid], 1.0)) < IDLE_CPU


def test_a_read_needs_nothing_of_the_target_once_a_lane_knows_its_region(start_peer: Peers) -> None:
    couple = Couple(start_peer, MC_TCP_LANES_PER_PEER="1")
    couple.transfer("read")
    os.kill(couple.target.pid, signal.SIGSTOP)
    try:
        blocks = addresses(couple.near, couple.far, scattered(SIZES[:8], 5))
        result = couple.initiator.move(couple.target.name, "read", blocks, "sync", limit=HUNG)
    finally:
        os.kill(couple.target.pid, signal.SIGCONT)
    assert result["code"] == 0


def test_a_write_to_a_target_that_is_stopped_is_given_up_and_the_next_one_arrives(couple: Couple) -> None:
    couple.transfer("write")
    lost = couple.target.memory(MIB)  # it may be written late
    os.kill(couple.target.pid, signal.SIGSTOP)
    try:
        result = couple.initiator.move(couple.target.name, "write", [[couple.near.address, lost.address, MIB]])
    finally:
        os.kill(couple.target.pid, signal.SIGCONT)
    assert result["code"] < 0
    assert result["seconds"] < GIVEN_UP
    couple.transfer("write", seed=3)


@opcodes
def test_memory_that_the_target_takes_back_is_out_of_bounds_at_once(couple: Couple, opcode: str) -> None:
    couple.transfer(opcode)
    assert couple.target.call("unregister_memory", couple.far.address) == 0
    block = [[couple.near.address, couple.far.address, 100_000]]
    assert couple.initiator.move(couple.target.name, opcode, block)["code"] < 0
    couple.near.adopt()
    couple.far.check()
    couple.target.register(couple.far)
    couple.transfer(opcode, seed=4)


@opcodes
def test_a_target_killed_in_the_middle_is_an_error(start_peer: Peers, opcode: str) -> None:
    couple, other = Couple(start_peer), start_peer(**NEIGHBOURS).create()
    couple.transfer(opcode)
    bystander = other.memory(SIZE, 3)
    blocks = addresses(couple.near, couple.far, [(0, 0, SIZE)] * 1024)
    pending = couple.initiator.start_move(couple.target.name, opcode, blocks)
    couple.target.kill()
    result = pending.result(HUNG)
    assert result["code"] < 0
    assert couple.initiator.logs(couple.target.name)
    couple.near.adopt()
    transfer(couple.near, bystander, opcode, scattered(SIZES))
    couple.near.check()
    bystander.check()


@opcodes
def test_an_initiator_killed_in_the_middle_leaves_nothing_behind(start_peer: Peers, opcode: str) -> None:
    target = start_peer(**NEIGHBOURS).create()
    far = target.memory(SIZE, 2)

    def die_in_the_middle() -> None:
        initiator = start_peer(**NEIGHBOURS).create()
        near = initiator.memory(SIZE, 1)
        assert initiator.move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)]))["code"] == 0
        initiator.start_move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)] * 1024))
        initiator.kill()

    die_in_the_middle()
    leaks = LeakCheck(target)
    for _ in range(3):
        die_in_the_middle()
    leaks.check()
    assert target.call("unregister_memory", far.address) == 0


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
def test_processes_of_one_user_are_neighbours_whether_or_not_they_may_read_memory(
    start_peer: Peers, dumpable: bool
) -> None:
    initiator, target = (become(start_peer(**NEIGHBOURS), NOBODY, dumpable) for _ in range(2))
    check_transfers(initiator.memory(SIZE), target.memory(SIZE))
    assert not connections_to(wire.data_address(target.name)[1])


def test_processes_of_different_users_use_tcp(start_peer: Peers) -> None:
    initiator = become(start_peer(**NEIGHBOURS), NOBODY, True)
    target = become(start_peer(**NEIGHBOURS), SOMEBODY, True)
    check_transfers(initiator.memory(SIZE), target.memory(SIZE))
    assert connections_to(wire.data_address(target.name)[1])


@pytest.mark.parametrize("off", ({"KVFERRY_SAME_HOST": "0"}, {"MC_FORCE_TCP": "1"}), ids=("off", "force tcp"))
def test_an_engine_where_it_is_off_uses_tcp_either_way(start_peer: Peers, off: dict[str, str]) -> None:
    one, other = start_peer(**{**NEIGHBOURS, **off}).create(), start_peer(**NEIGHBOURS).create()
    near, far = one.memory(SIZE), other.memory(SIZE)
    check_transfers(near, far)
    check_transfers(far, near)
    for engine in (one, other):
        assert connections_to(wire.data_address(engine.name)[1])
