"""A transfer is for one incarnation of one engine: it moves no byte of another that is found in its place."""

from __future__ import annotations

import time

import pytest

from support import wire
from support.memory import Memory, addresses, check_nothing_of, transfer
from support.peer import Peer
from support.peers import Peers
from support.ports import free_range
from support.process import stopped, until
from support.restarts import placed, restart, take_data_port
from support.world import HUNG, QUICK

SIZE = 1 << 20
LARGE = 64 << 20  # bytes of a batch: more than is in flight at once
PIECE = 1 << 20  # bytes
LONG = 6.0  # seconds: longer than an engine takes what it has fetched to be true

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


def identity(peer: Peer) -> str:
    found: str = wire.descriptor(peer.name)["kvferry"].get("identity", "without one")
    return found


class Replacement:
    """An initiator, and an engine of ours at the data port and the address of one that has died, whose segment the
    initiator has opened."""

    def __init__(self, peers: Peers, initiator: Peer, dead: Peer, used: bool) -> None:
        self.initiator, self.name = initiator, dead.name
        self.near, far = initiator.memory(SIZE, 1), placed(dead, SIZE)
        meet(initiator, self.near, dead, far, used)
        self.port = wire.data_address(dead.name)[1]
        dead.kill()
        self.other = take_data_port(peers, dead.name, self.port, QUICK)
        self.kept = placed(self.other, SIZE)
        self.kept.fill(5)
        self.near.fill(6)

    def check_nothing_moves(self, opcode: str) -> None:
        block = addresses(self.near, self.kept, [(0, 0, SIZE)])
        assert self.initiator.move(self.name, opcode, block, limit=HUNG)["code"] < 0
        self.kept.check()
        self.near.check()


@opcodes
@pytest.mark.parametrize("used", (True, False), ids=("used", "opened"))
def test_an_engine_at_the_data_port_of_a_dead_one_is_not_taken_for_it(
    start_peer: Peers, opcode: str, used: bool
) -> None:
    initiator = start_peer(**QUICK).create()
    dead = start_peer(**QUICK, **free_range(2)).create()
    expected = identity(dead)
    stage = Replacement(start_peer, initiator, dead, used)
    stage.check_nothing_moves(opcode)
    assert initiator.logs(f"engine {expected} was expected")
    assert initiator.logs(f"another engine answered, {identity(stage.other)}")


@opcodes
@pytest.mark.parametrize("kind", ("0.3.12", "0.3.13"))
def test_an_engine_at_the_data_port_of_a_dead_mooncake_is_not_dialled(
    start_peer: Peers, opcode: str, kind: str
) -> None:
    """Mooncake's engines cannot prove who they are. Their handshake port has to."""
    initiator = start_peer(**QUICK).create()
    stage = Replacement(start_peer, initiator, start_peer(kind, **free_range(2)).create(), used=True)
    stage.check_nothing_moves(opcode)
    assert initiator.logs(f"nothing proves that its owner is still the one at port {stage.port}")


def meet(initiator: Peer, near: Memory, target: Peer, far: Memory, used: bool) -> None:
    """Open the target's segment, and move something there if it is to be used."""
    if used:
        transfer(near, far, "write", [(0, 0, near.size)])
    else:
        assert initiator.call("get_first_buffer_address", target.name) == far.address


# The same name, and the same ports, after a restart.


class Restart:
    """An initiator, and a target that is to restart with its name, its ports and its memory where they were."""

    def __init__(self, peers: Peers, used: bool, size: int = SIZE) -> None:
        self._peers = peers
        # Nothing but the restart ends a transfer.
        patient = {"MC_TRANSFER_TIMEOUT": "60", "MC_TCP_STATUS_TIMEOUT_SEC": "60", "MC_TCP_PROGRESS_TIMEOUT_SEC": "60"}
        self.initiator = peers(**{**QUICK, **patient}).create()
        self._ports = free_range(2)
        self.target = peers(**QUICK, **self._ports).create()
        self.name = self.target.name
        self.near = self.initiator.memory(size, 1)
        self.far = placed(self.target, size)
        self.size = size
        meet(self.initiator, self.near, self.target, self.far, used)

    def succeed(self) -> None:
        """Start the successor of a target that has been killed, with memory that has something else in it."""
        self.target = restart(self._peers, self.name, {**QUICK, **self._ports})
        self.far = placed(self.target, self.size)
        self.far.fill(7)


@opcodes
@pytest.mark.parametrize("used", (True, False), ids=("used", "opened"))
def test_a_task_that_was_submitted_before_a_restart_fails_and_moves_nothing_after_it(
    start_peer: Peers, opcode: str, used: bool
) -> None:
    """More than is in flight at once, so that some of it is queued. The initiator sees no connection break before the
    successor is there: nothing else makes the task fail."""
    stage = Restart(start_peer, used, LARGE)
    columns = [[address + i for i in range(0, LARGE, PIECE)] for address in (stage.near.address, stage.far.address)]
    with stopped(stage.target):
        batch = stage.initiator.call(
            f"batch_transfer_async_{opcode}", stage.name, *columns, [PIECE] * (LARGE // PIECE), limit=HUNG
        )
        assert batch != 0
        with stopped(stage.initiator):
            stage.target.kill()
            stage.succeed()
    assert stage.initiator.call("get_batch_transfer_status", [batch], limit=HUNG) < 0
    stage.far.check()
    if opcode == "write":
        stage.near.check()
    else:  # on one host it may have read what the first incarnation had
        check_nothing_of(stage.far, stage.near)


@opcodes
def test_the_first_call_by_name_after_a_restart_succeeds(start_peer: Peers, opcode: str) -> None:
    stage = Restart(start_peer, used=True)
    restart_and_transfer(stage, opcode)


@opcodes
def test_the_first_call_ever_by_a_name_that_was_opened_long_before_a_restart_succeeds(
    start_peer: Peers, opcode: str
) -> None:
    stage = Restart(start_peer, used=False)
    old = time.monotonic() + LONG
    until(lambda: time.monotonic() >= old, 2 * LONG, "what was fetched is old")
    restart_and_transfer(stage, opcode)


@opcodes
def test_the_first_call_ever_by_a_name_that_was_opened_just_before_a_restart_succeeds(
    start_peer: Peers, opcode: str
) -> None:
    stage = Restart(start_peer, used=False)
    restart_and_transfer(stage, opcode)


def restart_and_transfer(stage: Restart, opcode: str) -> None:
    stage.target.kill()
    stage.succeed()
    stage.near.fill(8)
    transfer(stage.near, stage.far, opcode, [(0, 0, SIZE)], "sync")
    stage.near.check()
    stage.far.check()
