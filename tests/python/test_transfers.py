"""Transfers between two engines, and their results."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode
from support.inprocess import HOST, Node
from support.peers import Peers
from support.process import stop

pytestmark = pytest.mark.each_path

SIZE = 1 << 20
UNMAPPED = 4096  # below what the kernel maps


@pytest.fixture(autouse=True)
def contents(near: Node, far: Node) -> None:
    near.put(random.Random(1).randbytes(SIZE))
    far.put(random.Random(2).randbytes(SIZE))


def columns(near: Node, far: Node, spans: list[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    return [near.address + s[0] for s in spans], [far.address + s[1] for s in spans], [s[2] for s in spans]


SPANS = [(0, 500_000, 1), (4096, 0, 4096), (10_001, 600_001, 65_537), (100_000, 8192, 0)]


def check(near: Node, far: Node, spans: list[tuple[int, int, int]]) -> None:
    for local, remote, length in spans:
        assert near.get(length, local) == far.get(length, remote)


def test_one_block_is_written_and_read(near: Node, far: Node) -> None:
    for local, remote, length in SPANS:
        before = near.get(length, local)
        assert near.engine.transfer_sync_write(far.name, near.address + local, far.address + remote, length) == 0
        assert far.get(length, remote) == before
        far.put(random.Random(3).randbytes(length), remote)
        wanted = far.get(length, remote)
        assert near.engine.transfer_sync_read(far.name, near.address + local, far.address + remote, length) == 0
        assert near.get(length, local) == wanted


def test_an_opcode_chooses_the_direction(near: Node, far: Node) -> None:
    ours, theirs = near.get(100), far.get(100, 200)
    engine = near.engine
    assert engine.transfer_sync(far.name, near.address, far.address, 100, TransferOpcode.Write) == 0
    assert far.get(100) == ours
    lists = [near.address], [far.address + 200], [100]
    assert engine.batch_transfer_sync(far.name, *lists, TransferOpcode.READ) == 0
    assert near.get(100) == theirs


@pytest.mark.parametrize("direction", ["write", "read"])
def test_a_batch_is_moved_as_a_whole(near: Node, far: Node, direction: str) -> None:
    source, offset = (near, 0) if direction == "write" else (far, 1)
    wanted = [source.get(span[2], span[offset]) for span in SPANS]
    assert getattr(near.engine, f"batch_transfer_sync_{direction}")(far.name, *columns(near, far, SPANS)) == 0
    check(near, far, SPANS)
    assert [source.get(span[2], span[offset]) for span in SPANS] == wanted


@pytest.mark.parametrize("direction", ["write", "read"])
def test_a_batch_is_moved_in_the_background(near: Node, far: Node, direction: str) -> None:
    start = getattr(near.engine, f"batch_transfer_async_{direction}")
    batches = [start(far.name, *columns(near, far, [span])) for span in SPANS]
    assert all(0 < batch < 2**63 for batch in batches)
    assert near.engine.get_batch_transfer_status([*batches, batches[0]]) == 0
    check(near, far, SPANS)


def test_arrays_of_numpy_name_the_blocks(near: Node, far: Node) -> None:
    offsets = np.arange(0, SIZE, 8192)
    lengths = np.full(len(offsets), 4096, dtype=np.uint32)
    result = near.engine.batch_transfer_sync_write(far.name, near.address + offsets, far.address + offsets, lengths)
    assert result == 0
    check(near, far, [(o, o, 4096) for o in offsets.tolist()])


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(64)), st.integers(1, 16384), st.booleans())
def test_scattered_blocks_arrive_where_they_belong_and_nowhere_else(
    near: Node, far: Node, order: list[int], length: int, write: bool
) -> None:
    near.put(random.Random(length).randbytes(SIZE))
    source, target = (near, far) if write else (far, near)
    model = bytearray(target.get(SIZE))
    spans = [(i * 16384, slot * 16384, length) for i, slot in enumerate(order)]
    for local, remote, _ in spans:
        a, b = (local, remote) if write else (remote, local)
        model[b : b + length] = source.get(length, a)
    call = near.engine.batch_transfer_sync_write if write else near.engine.batch_transfer_sync_read
    assert call(far.name, *columns(near, far, spans)) == 0
    assert target.get(SIZE) == model


def test_the_own_memory_is_a_segment_too(near: Node) -> None:
    wanted = near.get(1000)
    assert near.engine.transfer_sync_write(near.name, near.address, near.address + 5000, 1000) == 0
    assert near.get(1000, 5000) == wanted
    assert near.engine.get_first_buffer_address(near.name) == near.address


def test_an_empty_batch_completes_unless_a_message_is_to_go_with_it(near: Node, far: Node) -> None:
    engine = near.engine
    assert engine.batch_transfer_sync_write(far.name, [], [], []) == 0
    assert engine.batch_transfer_sync(far.name, [], [], [], 1, TransferNotify("a", "b")) == -1
    batch = engine.batch_transfer_async_write(far.name, [], [], [])
    assert batch > 0
    assert engine.transfer_check_status(batch) == 1


@pytest.mark.parametrize("short", range(3))
def test_lists_of_different_lengths_fail(near: Node, far: Node, short: int) -> None:
    lists = [[near.address] * 2, [far.address] * 2, [1] * 2]
    lists[short].pop()
    local, remote, lengths = lists
    assert near.engine.batch_transfer_sync_write(far.name, local, remote, lengths) == -1
    assert near.engine.batch_transfer_sync_read(far.name, local, remote, lengths) == -1
    assert near.engine.batch_transfer_sync(far.name, local, remote, lengths, 0) == -1
    assert near.engine.batch_transfer_async_write(far.name, local, remote, lengths) == 0
    assert near.engine.batch_transfer_async(far.name, local, remote, lengths, 1) == 0


@pytest.mark.parametrize("target", ["127.0.0.1:1", "no.such.host.invalid:1", "", "127.0.0.1:0", "a b"])
def test_a_peer_that_cannot_be_opened_fails(near: Node, target: str) -> None:
    assert near.engine.transfer_sync_write(target, near.address, near.address, 1) < 0
    assert near.engine.batch_transfer_sync_read(target, [near.address], [near.address], [1]) < 0
    assert near.engine.batch_transfer_async_write(target, [near.address], [near.address], [1]) == 0
    assert near.engine.transfer_submit_write(target, near.address, near.address, 1) == 0
    assert near.engine.get_first_buffer_address(target) == 0


def test_a_range_that_is_not_registered_fails_and_the_rest_of_the_memory_is_unharmed(near: Node, far: Node) -> None:
    before = far.get(SIZE)
    for remote, length in ((far.address - 1, 2), (far.address + SIZE - 1, 2), (UNMAPPED, 1), (2**64 - 1, 2)):
        assert near.engine.transfer_sync_write(far.name, near.address, remote, length) < 0
    assert far.get(SIZE) == before


def test_the_local_memory_need_not_be_registered_but_must_be_mapped(near: Node, far: Node) -> None:
    loose = np.arange(4096, dtype=np.uint8)
    assert near.engine.transfer_sync_write(far.name, loose.ctypes.data, far.address, 4096) == 0
    assert far.get(4096) == loose.tobytes()
    for length in (1, 65536):
        assert near.engine.transfer_sync_write(far.name, UNMAPPED, far.address, length) < 0
        assert near.engine.transfer_sync_read(far.name, UNMAPPED, far.address, length) < 0
    assert near.engine.transfer_sync_write(far.name, near.address, far.address, 4096) == 0


def test_a_message_arrives_after_the_bytes(near: Node, far: Node) -> None:
    engine = near.engine
    first, second = TransferNotify("done", "\u00fc \U0001f600"), TransferNotify("", "")
    assert engine.transfer_sync(far.name, near.address, far.address, 10, TransferOpcode.Write, first) == 0
    lists = [near.address], [far.address], [10]
    assert engine.batch_transfer_sync(far.name, *lists, TransferOpcode.Read, notify=second) == 0
    received = [(n.name, n.msg) for n in far.engine.get_notifies()]
    assert received == [("done", "\u00fc \U0001f600"), ("", "")]
    assert far.engine.get_notifies() == []


def test_no_message_arrives_after_a_failure(near: Node, far: Node) -> None:
    message = TransferNotify("a", "b")
    assert near.engine.transfer_sync(far.name, near.address, UNMAPPED, 10, TransferOpcode.Write, message) < 0
    assert far.engine.get_notifies() == []


def test_a_message_that_is_too_long_fails_the_transfer_before_it_begins(near: Node, far: Node) -> None:
    before = far.get(SIZE)
    message = TransferNotify("a", "b" * (2 << 20))  # MC_HANDSHAKE_MAX_LENGTH is 1 MiB unless it is set
    assert near.engine.transfer_sync(far.name, near.address, far.address, 10, TransferOpcode.Write, message) < 0
    assert far.get(SIZE) == before
    assert far.engine.get_notifies() == []


def until_ended(engine: TransferEngine, batch: int) -> int:
    deadline = time.monotonic() + 30
    while (state := engine.transfer_check_status(batch)) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return state


def test_a_look_at_a_batch_tells_how_it_ended_and_frees_it(near: Node, far: Node) -> None:
    engine = near.engine
    good = engine.transfer_submit_write(far.name, near.address, far.address, 4096)
    bad = engine.batch_transfer_async_write(far.name, [near.address] * 2, [far.address, UNMAPPED], [1, 1])
    assert (until_ended(engine, good), until_ended(engine, bad)) == (1, -1)
    assert (engine.transfer_check_status(good), engine.transfer_check_status(bad)) == (-1, -1)


def test_waiting_for_batches_of_which_one_failed_fails_and_frees_all(near: Node, far: Node) -> None:
    engine = near.engine
    good = engine.batch_transfer_async_write(far.name, [near.address], [far.address], [1])
    bad = engine.batch_transfer_async_write(far.name, [near.address], [UNMAPPED], [1])
    assert engine.get_batch_transfer_status([good, bad]) == -1
    assert [engine.transfer_check_status(b) for b in (good, bad)] == [-1, -1]


def test_ids_that_name_no_batch_fail(near: Node, far: Node) -> None:
    engine = near.engine
    for unknown in (0, 1 << 40, 2**63, 2**64 - 1):
        assert engine.transfer_check_status(unknown) == -1
        assert engine.get_batch_transfer_status([unknown]) == -1
    assert engine.get_batch_transfer_status([]) == 0
    batch = engine.transfer_submit_write(far.name, near.address, far.address, 1)
    assert engine.get_batch_transfer_status([batch, 0]) == -1
    assert engine.transfer_check_status(batch) == -1
    assert far.engine.transfer_check_status(engine.transfer_submit_write(far.name, near.address, far.address, 1)) == -1


def test_a_peer_is_probed(near: Node, far: Node) -> None:
    assert near.engine.send_probe(far.name) == 0
    assert near.engine.send_probe("127.0.0.1:1") == -102
    assert near.engine.send_probe("no.such.host.invalid:1") == -101  # as Mooncake says of a name without an address


def test_the_first_buffer_is_found_once_the_peer_has_registered_one(near: Node) -> None:
    late = TransferEngine()
    assert late.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
    name = f"{HOST}:{late.get_rpc_port()}"
    assert near.engine.get_first_buffer_address(name) == 0
    first, second = late.allocate_managed_buffer(300 << 20), near.address
    assert first > second or late.register_memory(second, 4096) == 0
    assert near.engine.get_first_buffer_address(name) == first


# A peer that has stopped: nothing moves, and nobody says so.


class Stopped:
    """A peer that is stopped when a transfer is to be under way."""

    def __init__(self, start_peer: Peers) -> None:
        self.peer = start_peer().create()
        self.memory = self.peer.memory(64 << 20)
        self.name = self.peer.name

    def stop(self) -> None:
        stop(self.peer.pid)

    def go_on(self) -> None:
        self.peer.process.send_signal(signal.SIGCONT)


@pytest.fixture
def stopped(start_peer: Peers) -> Stopped:
    return Stopped(start_peer)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Node:
    """An engine that gives up after the shortest time there is, 5 seconds; it was read when the engine was made."""
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "1")
    node = Node(64 << 20)
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "1000")
    return node


@pytest.mark.parametrize(
    "own,ascend,seconds",
    (
        (None, None, 30),
        ("7", "1500", 7),
        ("1", "1500", 5),
        (None, "1500", 1.5),
        ("soon", "1500", 1.5),
        ("0", "0", 30),
        (None, "-1", 30),
    ),
)
def test_the_time_of_a_transfer_is_mooncakes_or_else_that_of_builds_for_ascend(
    monkeypatch: pytest.MonkeyPatch, own: str | None, ascend: str | None, seconds: float
) -> None:
    for name, value in (("MC_TRANSFER_TIMEOUT", own), ("ASCEND_TRANSFER_TIMEOUT", ascend)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    engine = TransferEngine()
    assert engine._timeout == seconds  # type: ignore[attr-defined]
    assert engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
    inner = engine.get_engine()
    assert inner is not None
    assert inner._functions.kvferry_transfer_timeout_ms(inner.handle) == seconds * 1000


def timed(call: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.monotonic()
    return call(*arguments), time.monotonic() - start


def test_a_stuck_transfer_is_given_up_after_its_time_and_its_buffers_are_left_alone(
    impatient: Node, stopped: Stopped
) -> None:
    engine, size = impatient.engine, 32 << 20
    one = (stopped.name, impatient.address, stopped.memory.address, size)
    many = (stopped.name, [impatient.address], [stopped.memory.address], [size])
    assert engine.transfer_sync_write(*one) == 0
    stopped.stop()
    results: dict[str, tuple[Any, float]] = {}
    early = time.monotonic()
    batch = engine.batch_transfer_async_write(*many)
    calls = {
        "write": lambda: engine.transfer_sync_write(*one),
        "read": lambda: engine.transfer_sync_read(stopped.name, one[1] + size, *one[2:]),
        "batch": lambda: engine.batch_transfer_sync_write(*many),
    }
    threads = [threading.Thread(target=lambda k=k, c=c: results.update({k: timed(c)})) for k, c in calls.items()]
    for thread in threads:
        thread.start()
    time.sleep(1)  # the batch's time counts from its submission, not from here
    assert engine.transfer_check_status(batch) == 0
    assert engine.get_batch_transfer_status([batch]) == -1
    assert 4.9 < time.monotonic() - early < 20
    assert engine.transfer_check_status(batch) == -1
    for thread in threads:
        thread.join()
    assert {k: code for k, (code, _) in results.items()} == dict.fromkeys(calls, -1)
    assert all(4.9 < seconds < 20 for _, seconds in results.values())

    impatient.put(bytes(64 << 20))
    stopped.go_on()
    assert engine.transfer_sync_write(*one) == 0  # the peer answers again
    assert impatient.get(64 << 20) == bytes(64 << 20), "a read that was given up wrote into its buffer"


def test_one_failed_batch_ends_the_wait_for_a_stuck_one(far: Node, stopped: Stopped) -> None:
    near = Node(64 << 20)
    assert near.engine.transfer_sync_write(stopped.name, near.address, stopped.memory.address, 1) == 0
    stopped.stop()
    stuck = near.engine.transfer_submit_write(stopped.name, near.address, stopped.memory.address, 32 << 20)
    bad = near.engine.transfer_submit_write(far.name, near.address, UNMAPPED, 1)
    code, seconds = timed(near.engine.get_batch_transfer_status, [stuck, bad])
    assert (code, near.engine.transfer_check_status(stuck)) == (-1, -1)
    assert seconds < 20, "the time limit is 30 s"


def test_a_task_that_timed_out_by_itself_keeps_its_id(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MC_SLICE_TIMEOUT", "1")
    near = Node(64 << 20)
    assert near.engine.transfer_sync_write(stopped.name, near.address, stopped.memory.address, 1) == 0
    stopped.stop()
    batch = near.engine.transfer_submit_write(stopped.name, near.address, stopped.memory.address, 32 << 20)
    assert until_ended(near.engine, batch) == -2
    assert near.engine.transfer_check_status(batch) == -2
    assert near.engine.get_batch_transfer_status([batch]) == -1
    assert near.engine.transfer_check_status(batch) == -1
