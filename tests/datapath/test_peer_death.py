"""Peers that are killed or end in the middle, peers that come back under the name they had, and memory that they take
back. An error names the peer, transfers with a healthy one go on meanwhile, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import devices, rawpeer
from support.dataport import DataPort
from support.memory import Memory, addresses, transfer
from support.peer import Pending
from support.peers import Peers
from support.ports import free_range
from support.rawpeer import BASE, RawTarget
from support.restarts import restart
from support.spans import scattered
from support.venvs import VERSIONS
from support.world import GIVEN_UP, HUNG, QUICK, World

SIZE = 16 << 20  # bytes
REPEATS = 1024  # blocks of that size in a transfer that somebody dies in: takes two seconds or more
SMALL = 1 << 20
SPANS = scattered([1, 2, 100, 1023, 4095, 4096, 65536, 262147, 500_000])

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))
kinds = pytest.mark.parametrize("kind", ("ours", *VERSIONS))


@pytest.fixture
def near(world: World, memory: str) -> Iterator[Memory]:
    """Much memory of the engine, which must be free of transfers in the end."""
    made = world.engine.memory(SIZE, 1, place=memory)
    yield made
    if not world.over:
        assert world.engine.call("unregister_memory", made.address) == 0
        made.free()


def start_long(initiator: Memory, target: Memory, opcode: str) -> Pending:
    """Start a transfer that takes a while, and wait until it is under way."""
    port = DataPort(target.peer.name)
    before = port.connections()
    blocks = addresses(initiator, target, [(0, 0, SIZE)] * REPEATS)
    pending = initiator.peer.start_move(target.peer.name, opcode, blocks)
    port.wait_for_connection(before)
    return pending


@kinds
@opcodes
def test_a_target_killed_in_the_middle_is_an_error_that_names_it(
    world: World, near: Memory, start_peer: Peers, kind: str, opcode: str
) -> None:
    target = start_peer(kind).create()
    far = target.memory(SIZE)
    port = DataPort(target.name).port
    with world.unharmed():
        pending = start_long(near, far, opcode)
        target.kill()
        result = pending.result(HUNG)
    assert result["code"] < 0
    assert result["seconds"] < GIVEN_UP
    assert world.engine.logs(target.name, str(port))


@opcodes
def test_a_target_that_comes_back_under_its_name_is_found(
    world: World, near: Memory, start_peer: Peers, opcode: str
) -> None:
    """A Mooncake target cannot do that: it waits until the kernel has forgotten the old connections."""
    settings = free_range(2)
    target = start_peer(**settings).create()
    pending = start_long(near, target.memory(SIZE), opcode)
    target.kill()
    assert pending.result(HUNG)["code"] < 0
    successor = restart(start_peer, target.name, settings)
    near.fill(11)
    far = successor.memory(1 << 20, 12)
    transfer(near, far, opcode, [(3, 5, 100_000)], "sync")
    far.check()
    near.check()


@opcodes
def test_a_dead_target_leaves_nothing_behind(world: World, near: Memory, start_peer: Peers, opcode: str) -> None:
    def die_in_the_middle() -> None:
        target = start_peer().create()
        pending = start_long(near, target.memory(SIZE), opcode)
        target.kill()
        assert pending.result(HUNG)["code"] < 0

    die_in_the_middle()
    leaks = world.leaks()
    for _ in range(3):
        die_in_the_middle()
    leaks.check()


@pytest.mark.parametrize("kind", ("ours", "0.3.8", "0.3.13"))
@opcodes
def test_a_dead_initiator_leaves_nothing_behind(
    world: World, near: Memory, start_peer: Peers, kind: str, opcode: str
) -> None:
    """Its memory can be unregistered afterwards: the fixture does so."""

    def die_in_the_middle() -> None:
        initiator = start_peer(kind).create()
        start_long(initiator.memory(SIZE), near, opcode)
        initiator.kill()

    with world.unharmed():
        die_in_the_middle()
        leaks = world.leaks()
        for _ in range(3):
            die_in_the_middle()
        leaks.check()


@opcodes
def test_memory_can_be_unregistered_while_a_peer_uses_it(
    world: World, memory: str, start_peer: Peers, opcode: str
) -> None:
    """What is under way then fails, and once the call has returned nothing touches the memory."""
    used = world.engine.memory(SIZE, 5, place=memory)
    initiator = start_peer().create()
    pending = start_long(initiator.memory(SIZE), used, opcode)
    assert world.engine.call("unregister_memory", used.address) == 0
    used.fill(6)
    assert pending.result(HUNG)["code"] < 0
    used.check()
    used.free()


@pytest.mark.parametrize("ending", ("initiator", "target"))
@pytest.mark.parametrize("there", ("host", "npu:1", "cuda:1"))
@opcodes
def test_an_engine_can_end_in_the_middle(start_peer: Peers, memory: str, there: str, ending: str, opcode: str) -> None:
    """A second initialization ends the engine, whoever still uses it."""
    initiator = start_peer(**QUICK, **devices.needed(memory)).create()
    target = start_peer(**devices.needed(there)).create()
    pending = start_long(initiator.memory(SIZE, place=memory), target.memory(SIZE, place=there), opcode)
    (initiator if ending == "initiator" else target).create()
    assert pending.result(HUNG)["code"] < 0
    for peer, place in ((initiator, memory), (target, there)):
        if place != "host":
            devices.end(peer)


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
    near = world.scratch
    near.fill(23)
    transfer(near, first, opcode, [(0, 0, 1000)])
    block = addresses(near, later, [(1, 2, 3000)])
    assert world.engine.move(target.name, opcode, block)["code"] < 0
    later.check()
    near.check()
    assert target.call("register_memory", later.address, later.size) == 0
    transfer(near, later, opcode, [(1, 2, 3000)])
    later.check()
    near.check()


def test_memory_that_was_unregistered_is_refused_and_no_byte_is_touched(world: World, start_peer: Peers) -> None:
    target = start_peer().create()
    far, near = target.memory(1 << 16, 31), world.scratch
    near.fill(32)
    transfer(near, far, "write", [(0, 0, 1000)])
    assert target.call("unregister_memory", far.address) == 0
    for opcode in ("read", "write"):
        assert world.engine.move(target.name, opcode, addresses(near, far, [(0, 0, 2000)]))["code"] < 0
    near.check()
    far.check()


@opcodes
def test_memory_that_the_target_takes_back_is_out_of_bounds_at_once_and_can_be_registered_again(
    world: World, start_peer: Peers, opcode: str
) -> None:
    """Also where the initiator has moved bytes there in the same way before, and may go on by itself."""
    target = start_peer().create()
    far, near = target.memory(SMALL, 31), world.scratch
    near.fill(32)
    transfer(near, far, opcode, SPANS)
    assert target.call("unregister_memory", far.address) == 0
    assert world.engine.move(target.name, opcode, addresses(near, far, [(0, 0, 100_000)]))["code"] < 0
    near.adopt()
    far.check()
    target.register(far)
    transfer(near, far, opcode, SPANS)
    near.check()
    far.check()
