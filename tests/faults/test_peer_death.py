"""Peers that are killed in the middle, and peers that come back under the name they had."""

from __future__ import annotations

import pytest

from support import rawpeer
from support.dataport import DataPort
from support.memory import addresses, transfer
from support.peers import Peers
from support.ports import free_range
from support.rawpeer import BASE, RawTarget
from support.restarts import restart
from support.venvs import VERSIONS
from support.world import GIVEN_UP, HUNG, QUICK, World

SIZE = 32 << 20  # bytes
REPEATS = 64  # blocks of that size in a transfer that somebody dies in: takes a few hundred milliseconds

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))
kinds = pytest.mark.parametrize("kind", ("ours", *VERSIONS))


@kinds
@opcodes
def test_a_target_killed_in_the_middle_is_an_error(world: World, start_peer: Peers, kind: str, opcode: str) -> None:
    target = start_peer(kind).create()
    far = target.memory(SIZE)
    near = world.engine.memory(SIZE, register=False)
    port = DataPort(target.name)
    with world.unharmed():
        pending = world.engine.start_move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS))
        port.wait_for_connection()
        target.kill()
        result = pending.result(HUNG)
    assert result["code"] < 0
    assert result["seconds"] < GIVEN_UP
    assert world.engine.logs(target.name, str(port.port))


@opcodes
def test_a_target_that_comes_back_under_its_name_is_found(world: World, start_peer: Peers, opcode: str) -> None:
    """A Mooncake target cannot do that: it waits until the kernel has forgotten the old connections."""
    settings = free_range(2)
    target = start_peer(**settings).create()
    near, far = world.engine.memory(SIZE, 1), target.memory(SIZE)
    port = DataPort(target.name)
    pending = world.engine.start_move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS))
    port.wait_for_connection()
    target.kill()
    assert pending.result(HUNG)["code"] < 0
    successor = restart(start_peer, target.name, settings)
    near.fill(11)
    far = successor.memory(1 << 20, 12)
    transfer(near, far, opcode, [(3, 5, 100_000)], "sync")
    far.check()
    near.check()


@opcodes
def test_a_dead_peer_leaves_nothing_behind(world: World, start_peer: Peers, opcode: str) -> None:
    def die_in_the_middle() -> None:
        target = start_peer().create()
        far = target.memory(SIZE)
        port = DataPort(target.name)
        pending = world.engine.start_move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS), "batch")
        port.wait_for_connection()
        target.kill()
        assert pending.result(HUNG)["code"] < 0

    near = world.engine.memory(SIZE, 1, register=False)
    die_in_the_middle()
    leaks = world.leaks()
    for _ in range(3):
        die_in_the_middle()
    leaks.check()


@pytest.mark.parametrize("kind", ("ours", "0.3.8", "0.3.13"))
@opcodes
def test_an_initiator_killed_in_the_middle_leaves_nothing_behind(
    world: World, start_peer: Peers, kind: str, opcode: str
) -> None:
    far = world.engine.memory(SIZE, 1)
    port = DataPort(world.engine.name)

    def die_in_the_middle() -> None:
        initiator = start_peer(kind).create()
        near = initiator.memory(SIZE)
        before = port.connections()
        initiator.start_move(world.engine.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS), "batch")
        port.wait_for_connection(before)
        initiator.kill()

    with world.unharmed():
        die_in_the_middle()
        leaks = world.leaks()
        for _ in range(3):
            die_in_the_middle()
        leaks.check()
    assert world.engine.call("unregister_memory", far.address) == 0


def test_a_peer_that_moved_its_data_port_is_found_again(world: World) -> None:
    """The name stays, the data port does not: its cached descriptor is fetched again, within the same transfer."""
    store = rawpeer.Store(4096)
    block = [[world.near.address, BASE, 4096]]
    with RawTarget(store) as target:
        assert world.engine.move(target.name, "write", block)["code"] == 0
        target.move_data_port(store)
        store.data[:] = bytes(4096)
        assert world.engine.move(target.name, "write", block)["code"] == 0
    assert store.data == world.near.model[:4096]


@kinds
@opcodes
def test_memory_that_is_registered_after_it_was_refused_can_be_used(
    world: World, start_peer: Peers, kind: str, opcode: str
) -> None:
    """Against v1 targets, which check nothing, the descriptor that we check must be fetched again."""
    target = start_peer(kind).create()
    first = target.memory(1 << 16, 21)
    later = target.memory(1 << 16, 22, register=False)
    near = world.engine.memory(1 << 16, 23)
    transfer(near, first, opcode, [(0, 0, 1000)])
    block = addresses(near, later, [(1, 2, 3000)])
    assert world.engine.move(target.name, opcode, block)["code"] < 0
    later.check()
    near.check()
    assert target.call("register_memory", later.address, later.size) == 0
    transfer(near, later, opcode, [(1, 2, 3000)])
    later.check()
    near.check()


def test_memory_that_was_unregistered_is_refused(world: World, start_peer: Peers) -> None:
    target = start_peer().create()
    far = target.memory(1 << 16, 31)
    near = world.engine.memory(1 << 16, 32)
    transfer(near, far, "write", [(0, 0, 1000)])
    assert target.call("unregister_memory", far.address) == 0
    for opcode in ("read", "write"):
        assert world.engine.move(target.name, opcode, addresses(near, far, [(0, 0, 2000)]))["code"] < 0
    near.check()
    far.check()


def test_a_probe_of_a_peer_that_died_says_so(start_peer: Peers) -> None:
    prober = start_peer(**QUICK).create()
    target = start_peer().create()
    assert prober.call("send_probe", target.name) == 0
    target.kill()
    assert prober.call("send_probe", target.name, limit=GIVEN_UP) == -102
