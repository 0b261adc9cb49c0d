"""Peers that stop while blocks of host memory are staged for them: they may not take the blocks from the others."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from support import devices, rawpeer, wire
from support.dataport import DataPort
from support.hello import Connect
from support.memory import Memory, addresses, transfer
from support.peers import Peers
from support.process import cpu_use, until
from support.rawpeer import BASE, RawTarget
from support.world import HUNG, World

MIB = 1 << 20
MUCH = 16 * MIB  # bytes of one request; MANY of them are more than all the blocks of a device
MANY = 16
PATIENT = {"MC_TRANSFER_TIMEOUT": "30", "MC_TCP_PROGRESS_TIMEOUT_SEC": "8", "MC_TCP_STATUS_TIMEOUT_SEC": "8"}
IDLE_CPU = 0.2  # seconds of processor time within one second

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@pytest.fixture(scope="module")
def worlds(module_peers: Peers, memory: str) -> Iterator[list[World]]:
    """The world of the module's tests, which is patient with peers; in the end it must leave nothing on its devices."""
    world = World(module_peers, place=memory, **devices.settings(**PATIENT))
    yield [world]
    devices.end(world.engine)


@pytest.fixture
def world(worlds: list[World]) -> World:
    return worlds[0]


@pytest.fixture
def much(world: World, memory: str) -> Iterator[Memory]:
    made = world.engine.memory(MUCH, place=memory)
    yield made
    assert world.engine.call("unregister_memory", made.address) == 0
    made.free()


@opcodes
def test_a_target_that_stalls_does_not_keep_the_blocks_from_others(world: World, much: Memory, opcode: str) -> None:
    with RawTarget(rawpeer.stall_half) as target:
        pending = world.engine.start_move(target.name, opcode, [[much.address, BASE, MUCH]] * MANY)
        with world.unharmed() as traffic:
            traffic.wait_for_more()
        assert not pending.done()
    assert pending.result(HUNG)["code"] < 0
    assert world.engine.logs(target.name)


@opcodes
def test_a_target_that_is_stopped_and_goes_on_gets_everything(
    world: World, start_peer: Peers, memory: str, much: Memory, opcode: str
) -> None:
    stopped = devices.start(start_peer).create()
    far = stopped.memory(MUCH, place="cuda:1" if memory.startswith("npu") else "npu:1")
    (much if opcode == "write" else far).fill(7)
    port = DataPort(stopped.name)
    pending = world.engine.start_move(stopped.name, opcode, addresses(much, far, [(0, 0, MUCH)] * MANY))
    port.wait_for_connection()
    stopped.process.send_signal(signal.SIGSTOP)
    with world.unharmed():
        cpu_use([world.engine.pid], 1.0)
    stopped.process.send_signal(signal.SIGCONT)
    assert pending.result(HUNG)["code"] == 0
    source, destination = (much, far) if opcode == "write" else (far, much)
    destination.model[:] = source.model
    destination.check()


@opcodes
def test_waiting_for_a_stalled_target_uses_no_processor(world: World, much: Memory, opcode: str) -> None:
    with RawTarget(rawpeer.stall) as target:
        pending = world.engine.start_move(target.name, opcode, [[much.address, BASE, MUCH]] * MANY)
        until(lambda: target.taken > 0, 30, "a connection to the target")
        (used,) = cpu_use([world.engine.pid], 1.0)
        assert used < IDLE_CPU
    assert pending.result(HUNG)["code"] < 0


@contextlib.contextmanager
def stalled_initiators(connect: Connect, opcode: int, address: int, sent: int) -> Iterator[None]:
    """Have MANY initiators that each start a request of MUCH bytes, send so many of its bytes and then do nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            connection = stack.enter_context(connect())
            connection.sendall(wire.header(opcode | wire.V2, address, MUCH) + bytes(sent))
        yield


@pytest.mark.parametrize("sent", (0, 100_000))
def test_initiators_that_stall_in_a_write_do_not_keep_the_blocks_from_others(
    world: World, connect: Connect, much: Memory, sent: int
) -> None:
    with stalled_initiators(connect, wire.WRITE, much.address, sent), world.unharmed():
        cpu_use([world.engine.pid], 1.0)


def test_initiators_that_do_not_take_what_they_read_do_not_keep_the_blocks_from_others(
    world: World, connect: Connect, much: Memory
) -> None:
    with stalled_initiators(connect, wire.READ, much.address, 0), world.unharmed():
        cpu_use([world.engine.pid], 1.0)


@pytest.mark.parametrize("there", ("npu:0", "cuda:0"))
def test_requests_of_more_than_all_blocks_move_both_ways_at_once(
    world: World, start_peer: Peers, much: Memory, there: str
) -> None:
    """Each waits for the other's blocks: they must not wait for ever."""
    other = devices.start(start_peer).create()
    far = other.memory(MUCH, 12, place=there)
    near = much
    near.fill(13)
    pending = [
        mover.peer.start_move(target.peer.name, opcode, addresses(mover, target, [(0, 0, MUCH)] * MANY))
        for mover, target, opcode in ((near, far, "write"), (far, near, "write"), (near, far, "read"))
    ]
    assert [p.result()["code"] for p in pending] == [0] * len(pending)
    near.fill(14)
    transfer(near, far, "write", [(0, 0, MUCH)])
    far.check()
