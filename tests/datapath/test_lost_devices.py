"""A device that is lost, or whose copies do not end: its transfers fail with the reason, those of another go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support import devices
from support.devices import simulate
from support.memory import addresses, transfer
from support.peer import Pending
from support.peers import Peers
from support.process import until
from support.spans import scattered
from support.world import GIVEN_UP, HUNG, World

pytestmark = pytest.mark.devices

SIZE = 16 << 20  # bytes
REPEATS = 16  # blocks of that size in a transfer in the middle of which a device goes
LESS = 4 << 20
IN_USE = -4
SPANS = scattered([1, 4096, 16384, 65537, 3 << 20])  # in memory of that size
COPIES = 20  # of a device before it goes
LOST = {"npu": "device 0 is lost", "cuda": "CUDA_ERROR_DEVICE_UNAVAILABLE"}  # what the libraries say of that

roles = pytest.mark.parametrize("role", ("initiator", "target"))
opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@pytest.fixture(params=devices.VARIABLES)
def kind(request: pytest.FixtureRequest) -> str:
    """What kind of device goes."""
    return str(request.param)


@pytest.fixture
def world(start_peer: Peers, kind: str) -> Iterator[World]:
    """An engine with memory on the second device that moves all the time; in the end it must leave nothing anywhere."""
    world = World(start_peer, place=f"{kind}:1", **devices.settings())
    yield world
    devices.end(world.engine, late=True)


class Endangered:
    """Memory on the first device, and transfers between it and host memory of the healthy peer."""

    def __init__(self, world: World, kind: str, role: str) -> None:
        self.near = world.engine.memory(SIZE, 5, place=f"{kind}:0")
        self.far = world.healthy.memory(SIZE, 6)
        self.initiator, self.target = (self.near, self.far) if role == "initiator" else (self.far, self.near)

    def start(self, opcode: str, repeats: int = REPEATS) -> Pending:
        blocks = addresses(self.initiator, self.target, [(0, 0, SIZE)] * repeats)
        return self.initiator.peer.start_move(self.target.peer.name, opcode, blocks)


@roles
@opcodes
def test_a_lost_device_fails_its_own_transfers_only(world: World, kind: str, role: str, opcode: str) -> None:
    endangered = Endangered(world, kind, role)
    assert endangered.start(opcode, 1).result()["code"] == 0
    simulate(world.engine, kind, "reset_counters")
    simulate(world.engine, kind, "faults", f"lost:0@{COPIES}")
    with world.unharmed():
        result = endangered.start(opcode).result(HUNG)
        assert result["code"] < 0
        assert result["seconds"] < GIVEN_UP
        again = endangered.start(opcode).result(HUNG)
        assert again["code"] < 0
        assert again["seconds"] < GIVEN_UP
    assert world.engine.logs(f"{kind}:0")
    assert world.engine.logs(LOST[kind])


@roles
@opcodes
@pytest.mark.parametrize("kind", ("cuda",))
def test_a_gpu_that_an_error_spoils_fails_its_own_transfers_only(
    world: World, kind: str, role: str, opcode: str
) -> None:
    """After it nothing works in that context any more, until the process ends."""
    endangered = Endangered(world, kind, role)
    simulate(world.engine, kind, "faults", "exec:2")
    for _ in range(2):
        result = endangered.start(opcode).result(HUNG)
        assert result["code"] < 0
        assert result["seconds"] < GIVEN_UP
    for text in (f"{kind}:0", "CUDA_ERROR_ILLEGAL_ADDRESS"):
        assert world.engine.logs(text)
    far = world.healthy.memory(LESS, 7)
    with world.unharmed():
        for place in ("host", "npu:0", "npu:1"):
            near = world.engine.memory(LESS, 8, place=place)
            for way in ("write", "read"):
                transfer(near, far, way, SPANS)
                near.check()
                far.check()
    assert endangered.start(opcode).result(HUNG)["code"] < 0


@roles
@opcodes
def test_a_copy_that_does_not_end_is_given_up_and_ends_no_other(
    world: World, kind: str, role: str, opcode: str
) -> None:
    """Until it does end, its blocks are nobody else's: the engine goes on without them."""
    endangered = Endangered(world, kind, role)
    assert endangered.start(opcode, 1).result()["code"] == 0
    simulate(world.engine, kind, "faults", "exec:2=hang")
    result = endangered.start(opcode).result(HUNG)
    assert result["code"] < 0
    assert result["seconds"] < GIVEN_UP
    assert world.engine.logs(f"{kind}:0")
    with world.unharmed():
        pass
    simulate(world.engine, kind, "faults", "")  # a busy machine may not have come to the copy that is to hang
    simulate(world.engine, kind, "release_hangs")
    until(lambda: simulate(world.engine, kind, "report")["busy_streams"] == 0, 60, "the device has done its copies")


class Hung:
    """An engine one of whose devices hangs amid a copy to its memory from the host's, and is long waited for."""

    def __init__(self, peers: Peers, kind: str) -> None:
        patient = {"MC_TCP_PROGRESS_TIMEOUT_SEC": "60", "MC_TCP_STATUS_TIMEOUT_SEC": "60"}
        self.world = World(peers, place=f"{kind}:1", **devices.settings(**patient))
        self.engine, self.kind = self.world.engine, kind
        self.host = self.engine.memory(LESS, 5)
        self.stuck = self.engine.memory(LESS, 6, place=f"{kind}:0")
        self.simulate("reset_counters")
        self.simulate("faults", "exec:1=hang")
        self.pending = self.engine.start_move(
            self.engine.name, "write", [[self.host.address, self.stuck.address, LESS]], "async"
        )
        until(lambda: bool(self.simulate("report")["faults"]), 30, "a copy")

    def simulate(self, control: str, *arguments: Any) -> Any:
        return simulate(self.engine, self.kind, control, *arguments)


@pytest.fixture
def hung(start_peer: Peers, kind: str) -> Hung:
    return Hung(start_peer, kind)


def test_a_device_that_hangs_holds_up_neither_other_copies_nor_unregistering(hung: Hung) -> None:
    engine, other = hung.engine, hung.engine.memory(LESS, 7)
    with hung.world.unharmed():
        within = engine.move(engine.name, "write", [[hung.host.address, other.address, LESS]], limit=HUNG)
        assert within["code"] == 0, "a copy within host memory"
        assert engine.call("unregister_memory", other.address, limit=HUNG) == 0
        assert engine.call("unregister_memory", hung.stuck.address, limit=HUNG) == IN_USE
    assert engine.logs_match(rf"{hung.stuck.address:#x}\+{LESS} by a WRITE of {LESS} bytes, segment 0")
    hung.simulate("release_hangs")
    hung.pending.result(HUNG)
    assert engine.call("unregister_memory", hung.stuck.address, limit=HUNG) == 0
    devices.end(engine)


def test_an_engine_is_closed_while_a_device_hangs_and_gives_all_back_later(hung: Hung) -> None:
    engine = hung.engine
    assert engine.try_create(limit=HUNG) == 0, "another one in its place"
    assert engine.logs_match(rf"an engine was closed: .*{hung.kind}:0's staging blocks are still in use")
    hung.simulate("release_hangs")
    assert hung.pending.result(HUNG)["code"] < 0
    engine.ask("drop", engine="main")
    engine.ask("free_regions")
    until(lambda: devices.nothing_leaked(engine, hung.kind), devices.LATE, "nothing left on the devices")
