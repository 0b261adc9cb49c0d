"""Peers that are killed while bytes are staged on one side or the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import devices
from support.dataport import DataPort
from support.memory import addresses
from support.peers import Peers
from support.world import GIVEN_UP, HUNG, QUICK, World

SIZE = 16 << 20  # bytes
REPEATS = 64  # blocks of that size in a transfer that somebody dies in

PLACES = ("npu:0", "cuda:0")

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """Where the memory is that bytes are staged for."""
    return str(request.param)


@pytest.fixture
def world(start_peer: Peers, place: str) -> Iterator[World]:
    """An engine with memory at that place, which in the end must leave nothing on its devices."""
    world = World(start_peer, place=place, **devices.settings())
    yield world
    devices.end(world.engine)


@pytest.mark.parametrize("kind", ("ours", "0.3.13"))
@opcodes
def test_a_target_killed_during_staging_fails_its_own_transfers(
    world: World, start_peer: Peers, kind: str, place: str, opcode: str
) -> None:
    target = start_peer(kind).create()
    far = target.memory(SIZE)
    near = world.engine.memory(SIZE, place=place)
    port = DataPort(target.name)
    with world.unharmed():
        pending = world.engine.start_move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS))
        port.wait_for_connection()
        target.kill()
        result = pending.result(HUNG)
    assert result["code"] < 0
    assert result["seconds"] < GIVEN_UP
    assert world.engine.logs(target.name, str(port.port))


@pytest.mark.parametrize("kind", ("ours", "0.3.8", "0.3.13"))
@opcodes
def test_an_initiator_killed_during_staging_harms_nobody(
    world: World, start_peer: Peers, kind: str, place: str, opcode: str
) -> None:
    far = world.engine.memory(SIZE, place=place)
    port = DataPort(world.engine.name)
    with world.unharmed():
        for _ in range(3):
            initiator = start_peer(kind).create()
            near = initiator.memory(SIZE)
            before = port.connections()
            initiator.start_move(world.engine.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS))
            port.wait_for_connection(before)
            initiator.kill()
    assert world.engine.call("unregister_memory", far.address) == 0


@opcodes
def test_memory_can_be_unregistered_while_it_is_staged_for_a_peer(
    world: World, start_peer: Peers, place: str, opcode: str
) -> None:
    """What is under way then fails, and once the call has returned nothing touches the memory."""
    far = world.engine.memory(SIZE, 5, place=place)
    initiator = start_peer("ours").create()
    near = initiator.memory(SIZE)
    pending = initiator.start_move(world.engine.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS))
    port = DataPort(world.engine.name)
    port.wait_for_connection()
    assert world.engine.call("unregister_memory", far.address) == 0
    far.fill(6)
    assert pending.result(HUNG)["code"] < 0
    far.check()


@pytest.mark.parametrize("ending", ("initiator", "target"))
@pytest.mark.parametrize(
    "here,there", (("npu:0", "npu:1"), ("npu:0", "cuda:1"), ("cuda:0", "npu:1"), ("cuda:0", "cuda:1"))
)
@opcodes
def test_an_engine_can_end_while_bytes_are_staged(
    start_peer: Peers, here: str, there: str, ending: str, opcode: str
) -> None:
    """A second initialization ends the engine, whoever still uses it."""
    initiator, target = devices.start(start_peer, **QUICK).create(), devices.start(start_peer).create()
    near, far = initiator.memory(SIZE, place=here), target.memory(SIZE, place=there)
    pending = initiator.start_move(target.name, opcode, addresses(near, far, [(0, 0, SIZE)] * REPEATS))
    port = DataPort(target.name)
    port.wait_for_connection()
    (initiator if ending == "initiator" else target).create()
    assert pending.result(HUNG)["code"] < 0
    for peer in (initiator, target):
        devices.end(peer)
