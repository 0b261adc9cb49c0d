"""Copies that are stuck since their pages do not come: what they use is told, not waited for, and all else goes on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from support import absent, hello
from support.memory import Memory
from support.peer import Peer
from support.peers import Peers, unavailable
from support.world import HUNG, World

IN_USE = -4
OVERLAPPED = -7
SIZE = 8192


@pytest.fixture(autouse=True)
def pages_can_be_withheld() -> None:
    if not absent.allowed():
        unavailable("userfaultfd, which makes pages that do not come, takes root or vm.unprivileged_userfaultfd=1")


class Attack:
    """This process has a target copy from memory of which no page comes, as only a peer of bad manners does: an engine
    sends the payload of such memory itself."""

    def __init__(self, victim: Memory) -> None:
        self._source = absent.AbsentRegion(SIZE)
        self._held = contextlib.ExitStack()
        self._over = False
        connection, answer = self._held.enter_context(hello.greeted(victim.peer.name, hello.Permit()))
        assert answer.flags & hello.COPIES
        hello.say(connection, hello.write_by_address(victim.address, SIZE, self._source.address))
        self._source.wait_for_touch()

    @property
    def culprit(self) -> str:
        """How the target's log names it."""
        return f"process {os.getpid()}"

    def end(self) -> None:
        """Let the pages come. Another time it does nothing."""
        if not self._over:
            self._over = True
            self._source.come()
            self._held.close()


@pytest.fixture
def attack() -> Iterator[Callable[[Memory], Attack]]:
    """Make attacks, which end with the test."""
    with contextlib.ExitStack() as ends:

        def make(victim: Memory) -> Attack:
            made = Attack(victim)
            ends.callback(made.end)
            return made

        yield make


Attacks = Callable[[Memory], Attack]


@pytest.fixture
def world(start_peer: Peers) -> World:
    return World(start_peer)


def test_memory_that_a_stuck_copy_uses_is_not_given_back_and_all_else_goes_on(world: World, attack: Attacks) -> None:
    engine, victim = world.engine, world.engine.memory(SIZE)
    attacker = attack(victim)
    with world.unharmed():
        assert engine.call("unregister_memory", victim.address, limit=HUNG) == IN_USE
        assert engine.call("register_memory", victim.address, 1) == OVERLAPPED
    culprit = rf"a transfer of {attacker.culprit}\b"
    assert engine.logs_match(rf"\bunregister_memory: .*{victim.address:#x}\+{SIZE} by {culprit}")
    assert engine.logs_match(rf"\bregister_memory: .*still in use: {culprit}")

    attacker.end()
    assert engine.call("unregister_memory", victim.address, limit=HUNG) == 0
    engine.register(victim)
    with world.unharmed():
        pass


def test_an_engine_with_a_stuck_copy_ends_and_says_so_and_another_can_be_made(world: World, attack: Attacks) -> None:
    engine = world.engine
    managed = engine.call("allocate_managed_buffer", SIZE)
    attacker = attack(Memory(engine, "managed", managed, SIZE))
    engine.ask("drop", HUNG, engine="main")
    assert engine.logs_match(rf"an engine was closed: .*{attacker.culprit}, memory 0x[0-9a-f]+\+\d+")
    assert is_mapped(engine, managed), "a buffer is unmapped that the copy may still be written to"
    engine.create()
    other = engine.memory(SIZE, 4)
    assert world.healthy.move(engine.name, "write", [[world.far.address, other.address, SIZE]])["code"] == 0

    attacker.end()  # the copy comes back to an engine that is gone
    assert world.healthy.move(engine.name, "read", [[world.far.address, other.address, SIZE]])["code"] == 0
    assert engine.close() == 0


def is_mapped(peer: Peer, address: int) -> bool:
    ranges = (line.split()[0].split("-") for line in Path(f"/proc/{peer.pid}/maps").read_text().splitlines())
    return any(int(first, 16) <= address < int(end, 16) for first, end in ranges)


def test_a_process_with_a_stuck_copy_ends(world: World, attack: Attacks) -> None:
    attack(world.engine.memory(SIZE))
    assert world.engine.close() == 0


def test_a_read_into_memory_whose_pages_do_not_come_returns_and_says_so(world: World, start_peer: Peers) -> None:
    engine, target = world.engine, start_peer().create()
    far, stuck = target.memory(SIZE), engine.memory(SIZE, place="absent")
    moving = engine.start_move(target.name, "read", [[stuck.address, far.address, SIZE]], "sync")
    engine.ask("wait_for_touch", region=stuck.region)
    with world.unharmed():
        assert moving.result(HUNG)["code"] < 0
    assert engine.logs_match(rf"may still use their memory.*{re.escape(target.name)}.*{stuck.address:#x}\+{SIZE}")
    assert engine.call("unregister_memory", stuck.address, limit=HUNG) == IN_USE
    assert engine.logs_match(rf"{stuck.address:#x}\+{SIZE} by a system call")

    engine.ask("come", region=stuck.region)
    assert engine.call("unregister_memory", stuck.address, limit=HUNG) == 0
    with world.unharmed():
        pass
