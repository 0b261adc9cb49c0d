"""What happens at the end of ports, descriptors and memory, and where an engine listens."""

from __future__ import annotations

import socket

import pytest

from support import wire
from support.memory import addresses, transfer
from support.pairs import SETTINGS
from support.peers import Peers
from support.ports import confined_to, hold_range
from support.process import cpu_use
from support.world import GIVEN_UP, QUICK, World

MANY = 100_000  # requests of one batch
MANY_V1 = 10_000  # where each takes a connection of its own
MANY_KIB = 64 << 10  # what they may need for a while: the lists, their copy as arrays, some hundred bytes for each


# Ports.


def test_a_full_port_range_is_an_error_that_names_it(start_peer: Peers) -> None:
    held = hold_range(2)
    settings = confined_to(held)
    try:
        peer = start_peer(**settings)
        assert peer.try_create(limit=GIVEN_UP) < 0
        for port in settings.values():
            assert peer.logs(port)
    finally:
        for s in held:
            s.close()
    assert peer.try_create(limit=GIVEN_UP) == 0, "the ports are free again"


def test_busy_ports_are_passed_over(start_peer: Peers) -> None:
    held = hold_range(12)
    try:
        for spare in (held.pop(3), held.pop(7)):
            spare.close()
        peer = start_peer(**confined_to(held)).create()
        other = start_peer().create()
        transfer(other.memory(4096, 1), peer.memory(4096, 2), "write", [(0, 0, 4096)])
    finally:
        for s in held:
            s.close()


# Descriptors.


def test_an_initiator_out_of_descriptors_fails_and_recovers(world: World, start_peer: Peers) -> None:
    target = start_peer().create()
    far = target.memory(1 << 16, 41)
    near = world.engine.memory(1 << 16, 42)
    block = addresses(near, far, [(0, 0, 1 << 16)])
    with world.unharmed():
        soft = world.engine.ask("limit_descriptors", spare=0)
        try:
            result = world.engine.move(target.name, "write", block)
        finally:
            world.engine.ask("restore_descriptors", soft=soft)
        assert result["code"] < 0
        assert result["seconds"] < GIVEN_UP
        assert world.engine.logs("too many open files")
    transfer(near, far, "write", [(0, 0, 1 << 16)])
    far.check()


def test_a_target_out_of_descriptors_serves_who_is_connected_and_then_the_others(
    world: World, start_peer: Peers
) -> None:
    newcomer = start_peer(**QUICK).create()
    near = newcomer.memory(1 << 16, 51)
    far = world.engine.memory(1 << 16, 52)
    with world.unharmed():
        soft = world.engine.ask("limit_descriptors", spare=0)
        try:
            moving = newcomer.start_move(world.engine.name, "write", addresses(near, far, [(0, 0, 1 << 16)]))
            (busy,) = cpu_use([world.engine.pid], 1.0)
        finally:
            world.engine.ask("restore_descriptors", soft=soft)
        moving.result()
    assert busy < 0.9, "a target that cannot accept keeps trying without a pause"
    transfer(near, far, "write", [(0, 0, 1 << 16)])
    far.check()


# Memory.


@pytest.mark.parametrize("opcode", ("read", "write"))
@pytest.mark.parametrize("setting,count", (("default", MANY), ("v1", MANY_V1)))
def test_a_huge_batch_needs_bounded_memory(start_peer: Peers, setting: str, count: int, opcode: str) -> None:
    length = 48
    initiator, target = start_peer(**SETTINGS[setting]).create(), start_peer().create()
    near, far = initiator.memory(count * length, 61), target.memory(count * length, 62)
    result = initiator.ask(
        "grid",
        engine="main",
        opcode=opcode,
        target=target.name,
        local=near.address,
        peer=far.address,
        length=length,
        count=count,
        limit=120,
    )
    assert result["code"] == 0
    assert result["kib"] < MANY_KIB
    source, destination = (near, far) if opcode == "write" else (far, near)
    for i in range(count):
        j = count - 1 - i
        destination.model[j * length : (j + 1) * length] = source.model[i * length : (i + 1) * length]
    near.check()
    far.check()


# Addresses.


def test_a_listener_for_one_address_does_not_listen_on_all(world: World) -> None:
    for port in (wire.split_name(world.engine.name)[1], wire.data_address(world.engine.name)[1]):
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
