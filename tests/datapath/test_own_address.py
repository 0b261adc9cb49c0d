"""Names that lead back to the engine that uses them: nothing is moved, unless it is the engine that is meant."""

from __future__ import annotations

from typing import Any

import pytest

from support import wire
from support.memory import Memory, addresses, apply
from support.peer import Peer
from support.peers import Peers
from support.rawpeer import RawTarget
from support.world import HUNG, QUICK

SIZE = 4096

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@opcodes
@pytest.mark.parametrize("proto", (1, 2), ids=("v1", "v2"))
def test_a_descriptor_that_names_this_engines_own_data_port_is_refused(
    start_peer: Peers, opcode: str, proto: int
) -> None:
    engine = start_peer(**QUICK).create()
    here, there = engine.memory(SIZE, 1), engine.memory(SIZE, 2)
    own = wire.descriptor(engine.name)
    refuse(engine, opcode, here, there, {"tcp_data_port": own["tcp_data_port"], "tcp_proto_version": proto})
    assert engine.logs("names the address of this engine's own data port")


@opcodes
def test_an_engine_is_reached_by_another_name_of_its_own(start_peer: Peers, opcode: str) -> None:
    """The descriptor there has its identity: it is the engine that the name stands for."""
    engine = start_peer(**QUICK).create()
    here, there = engine.memory(SIZE, 1), engine.memory(SIZE, 2)
    alias = f"localhost:{engine.name.rsplit(':', 1)[1]}"
    assert engine.move(alias, opcode, addresses(here, there, [(0, 0, SIZE)]))["code"] == 0
    apply(opcode, here, there, [(0, 0, SIZE)])
    here.check()
    there.check()


@opcodes
def test_a_descriptor_of_another_identity_at_this_engines_own_data_port_is_refused(
    start_peer: Peers, opcode: str
) -> None:
    engine = start_peer(**QUICK).create()
    here, there = engine.memory(SIZE, 1), engine.memory(SIZE, 2)
    own = wire.descriptor(engine.name)
    other = {**own["kvferry"], "identity": "0123456789abcdef" * 2}
    refuse(engine, opcode, here, there, {"tcp_data_port": own["tcp_data_port"], "kvferry": other})
    assert engine.logs("which is this engine itself")


def refuse(engine: Peer, opcode: str, here: Memory, there: Memory, changes: dict[str, Any]) -> None:
    """Move bytes by the name of a handshake port whose descriptor has these changes, which must fail."""
    buffers = [{"name": "cpu:0", "addr": there.address, "length": there.size}]
    with RawTarget(changes={**changes, "buffers": buffers}) as target:
        result = engine.move(target.name, opcode, [[here.address, there.address, SIZE]], limit=HUNG)
    assert result["code"] < 0
    here.check()
    there.check()
