"""Copies that are stuck since their pages do not come: what they use is told, not waited for, and all else goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import absent
from support.memory import Memory
from support.peer import Peer, Pending
from support.peers import Peers, unavailable
from support.world import HUNG, QUICK, World

IN_USE = -4
OVERLAPPED = -7
SIZE = 8192
ON_ONE_HOST = {"KVFERRY_SAME_HOST": "1"}


@pytest.fixture(autouse=True)
def pages_can_be_withheld() -> None:
    if not absent.allowed():
        unavailable("userfaultfd, which makes pages that do not come, takes root or vm.unprivileged_userfaultfd=1")


class Attack:
    """A process on the same host that WRITEs memory of which no page comes to a target's memory."""

    def __init__(self, peers: Peers, victim: Memory) -> None:
        self.attacker = peers(**QUICK, **ON_ONE_HOST).create()
        self.memory = self.attacker.memory(SIZE, place="absent", location="cpu:0")
        blocks = [[self.memory.address, victim.address, SIZE]]
        self.pending: Pending = self.attacker.start_move(victim.peer.name, "write", blocks, "sync")
        self.attacker.ask("wait_for_touch", region=self.memory.region)

    @property
    def culprit(self) -> str:
        """How the target's log names it."""
        return f"process {self.attacker.pid}"


@pytest.fixture
def world(start_peer: Peers) -> World:
    return World(start_peer, **ON_ONE_HOST)


def test_memory_that_a_stuck_copy_uses_is_not_given_back_and_all_else_goes_on(world: World, start_peer: Peers) -> None:
    engine, victim = world.engine, world.engine.memory(SIZE)
    attack = Attack(start_peer, victim)
    with world.unharmed():
        assert engine.call("unregister_memory", victim.address, limit=HUNG) == IN_USE
        assert engine.call("register_memory", victim.address, 1) == OVERLAPPED
    log = engine.log()
    assert re.search(rf"unregister_memory: .*{victim.address:#x}\+{SIZE} by a transfer of {attack.culprit}\b", log)
    assert re.search(rf"register_memory: .*still in use: a transfer of {attack.culprit}\b", log)

    attack.attacker.kill()
    assert engine.call("unregister_memory", victim.address, limit=HUNG) == 0
    engine.register(victim)
    with world.unharmed():
        pass


def test_an_engine_with_a_stuck_copy_ends_and_says_so_and_another_can_be_made(world: World, start_peer: Peers) -> None:
    engine = world.engine
    managed = engine.call("allocate_managed_buffer", SIZE)
    attack = Attack(start_peer, Memory(engine, "managed", managed, SIZE))
    engine.ask("drop", HUNG, engine="main")
    assert re.search(rf"an engine was closed: .*{attack.culprit}, memory 0x[0-9a-f]+\+\d+", engine.log())
    assert is_mapped(engine, managed), "a buffer is unmapped that the copy may still be written to"
    engine.create()
    other = engine.memory(SIZE, 4)
    assert world.healthy.move(engine.name, "write", [[world.far.address, other.address, SIZE]])["code"] == 0

    attack.attacker.kill()  # the copy comes back to an engine that is gone
    assert world.healthy.move(engine.name, "read", [[world.far.address, other.address, SIZE]])["code"] == 0
    assert engine.close() == 0


def is_mapped(peer: Peer, address: int) -> bool:
    ranges = (line.split()[0].split("-") for line in Path(f"/proc/{peer.pid}/maps").read_text().splitlines())
    return any(int(first, 16) <= address < int(end, 16) for first, end in ranges)


def test_a_process_with_a_stuck_copy_ends(world: World, start_peer: Peers) -> None:
    Attack(start_peer, world.engine.memory(SIZE))
    assert world.engine.close() == 0


def test_a_read_into_memory_whose_pages_do_not_come_returns_and_says_so(world: World, start_peer: Peers) -> None:
    engine, target = world.engine, start_peer(**ON_ONE_HOST).create()
    far, stuck = target.memory(SIZE), engine.memory(SIZE, place="absent", location="cpu:0")
    moving = engine.start_move(target.name, "read", [[stuck.address, far.address, SIZE]], "sync")
    engine.ask("wait_for_touch", region=stuck.region)
    with world.unharmed():
        assert moving.result(HUNG)["code"] < 0
    batch = rf"a READ of {SIZE} bytes, segment \"{re.escape(target.name)}\", batch \d+"
    assert re.search(rf"was given up, but its memory is still in use: {batch}", engine.log())
    assert engine.call("unregister_memory", stuck.address, limit=HUNG) == IN_USE
    assert re.search(rf"{stuck.address:#x}\+{SIZE} by {batch}", engine.log())

    engine.ask("come", region=stuck.region)
    assert engine.call("unregister_memory", stuck.address, limit=HUNG) == 0
    with world.unharmed():
        pass
