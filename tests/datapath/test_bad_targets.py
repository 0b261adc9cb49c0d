"""Targets whose data port does not behave: each is an error that names the peer, and harms nobody else."""

from __future__ import annotations

import pytest

from support import rawpeer, wire
from support.bad_peers import LENGTH, check_bad_peer, nothing_left
from support.pattern import pattern
from support.rawpeer import BASE, Handler, RawTarget, answering
from support.world import World

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))

BAD_DATA_PORTS: dict[str, Handler] = {
    "takes nothing": rawpeer.stall,
    "reads and never answers": rawpeer.swallow,
    "closes at once": rawpeer.close_at_once,
    "resets at once": rawpeer.reset_at_once,
    "closes within the header": rawpeer.close_mid_header,
    "closes within the payload": rawpeer.serve_half,
    "stops within the payload": rawpeer.stall_half,
    "closes within the status": answering(wire.status_frame(wire.OK)[:5]),
    "stops within the status": answering(wire.status_frame(wire.OK)[:5], keep=True),
    "answers garbage": answering(b"\xa5" * 64, keep=True),
    "answers another magic": answering(wire.STATUS.pack(0x4D435457 << 32), keep=True),
    "answers like an HTTP server": answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "rejects": answering(wire.status_frame(wire.REJECTED)),
    "rejects and keeps the connection": answering(wire.status_frame(wire.REJECTED), keep=True),
    "answers status 2": answering(wire.status_frame(2)),
    "answers status 2^32-1": answering(wire.status_frame(0xFFFFFFFF), keep=True),
}
BAD_V1_DATA_PORTS = (
    "takes nothing",
    "closes at once",
    "resets at once",
    "closes within the header",
    "closes within the payload",
    "stops within the payload",
)


@opcodes
@pytest.mark.parametrize("port", BAD_DATA_PORTS)
def test_a_bad_data_port_is_an_error_that_names_the_peer(world: World, port: str, opcode: str) -> None:
    with nothing_left(world), RawTarget(BAD_DATA_PORTS[port]) as target:
        check_bad_peer(world, target.name, opcode, (target.name, f"127.0.0.1:{target.data_port}"))
        assert target.taken > 0


@opcodes
@pytest.mark.parametrize("port", BAD_V1_DATA_PORTS)
def test_a_bad_v1_data_port_is_an_error_that_names_the_peer(world: World, port: str, opcode: str) -> None:
    with nothing_left(world), RawTarget(BAD_DATA_PORTS[port], proto=1) as target:
        check_bad_peer(world, target.name, opcode, (target.name, f"127.0.0.1:{target.data_port}"))
        assert target.taken > 0


@opcodes
def test_a_data_port_that_never_accepts_is_given_up(world: World, opcode: str) -> None:
    with nothing_left(world), RawTarget(on_data=None) as target:
        check_bad_peer(world, target.name, opcode, (target.name, f"127.0.0.1:{target.data_port}"))


@opcodes
def test_a_data_port_that_nobody_listens_on_is_an_error(world: World, opcode: str) -> None:
    with nothing_left(world), RawTarget(changes={"tcp_data_port": 1}) as target:
        check_bad_peer(world, target.name, opcode, (target.name, "127.0.0.1:1"))


@opcodes
def test_a_target_that_takes_its_time_is_served_to_the_end(world: World, opcode: str) -> None:
    """Pauses shorter than the progress timeout are no fault."""
    store = rawpeer.Store(LENGTH, pause=1.0)
    store.data[:] = pattern(99, LENGTH)
    with nothing_left(world), RawTarget(store) as target, world.unharmed():
        world.scratch.fill(77)
        block = [[world.scratch.address, BASE, LENGTH]]
        assert world.engine.move(target.name, opcode, block)["code"] == 0
        if opcode == "read":
            world.scratch.model[:LENGTH] = store.data
        world.scratch.check()
        assert store.data == world.scratch.model[:LENGTH]
