"""Scatter transfers, and the promises of their tickets."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import pytest

from kvferry import _scatter
from kvferry._library import LibraryError
from mooncake.engine import ScatterTransferCompletionStatus as Status
from mooncake.engine import ScatterTransferTicket, TransferEngine
from support import absent
from support.ids import shown
from support.inprocess import HOST, Node
from support.peers import unavailable
from support.rawpeer import BASE, RawTarget, swallow

SIZE = 1 << 20
SOON = 20_000  # milliseconds that what ends by itself may take
NOBODY = "127.0.0.1:1"
Call = Callable[..., ScatterTransferTicket]

calls = pytest.mark.parametrize("direction", ("write", "read"))
forms = pytest.mark.parametrize("form", ("submit_scatter_{}", "scatter_transfer_sync_{}_with_ticket"))


@pytest.fixture(autouse=True)
def contents(near: Node, far: Node) -> None:
    near.put(random.Random(1).randbytes(SIZE))
    far.put(random.Random(2).randbytes(SIZE))


@pytest.fixture
def silent() -> Iterator[RawTarget]:
    """A peer that takes all that it is sent and never answers."""
    with RawTarget(on_data=swallow) as target:
        yield target


def whole(node: Node, target: RawTarget) -> tuple[Any, ...]:
    """All memory of the node as one block, which goes to a raw target."""
    return target.name, [node.address], [SIZE], [BASE], [SIZE], [[0]], [[0]], [[SIZE]]


def check_untouched(node: Node) -> None:
    """Nothing uses the node's memory: it is given back at once, as something that is in use is not."""
    assert node.engine.unregister_memory(node.address) == 0
    node.memory.buffer.close()


@calls
@forms
def test_blocks_of_several_regions_arrive_and_nothing_else_changes(
    near: Node, far: Node, direction: str, form: str
) -> None:
    blocks = [[(0, 4000, 100), (60_000, 0, 5536)], [], [(1, 2, 3), (5000, 100_000, 200_000)]]  # local, remote, length
    bases = [(0, 0), (65_536, 65_536), (131_072, 262_144)]
    capacities = [(65_536, 65_536), (1, 0), (300_000, 400_000)]
    source, target = (near, far) if direction == "write" else (far, near)
    model = bytearray(target.get(SIZE))
    for (local, remote), region in zip(bases, blocks):
        for a, b, n in region:
            here, there = (local + a, remote + b) if direction == "write" else (remote + b, local + a)
            model[there : there + n] = source.get(n, here)
    ticket = getattr(near.engine, form.format(direction))(
        far.name,
        [near.address + b[0] for b in bases],
        [c[0] for c in capacities],
        [far.address + b[1] for b in bases],
        [c[1] for c in capacities],
        *([[block[i] for block in region] for region in blocks] for i in range(3)),
    )
    if form.startswith("scatter"):
        assert ticket.status is Status.COMPLETED
    assert ticket.drain(SOON) is Status.COMPLETED
    assert ticket.drained
    assert target.get(SIZE) == model


def test_arrays_of_numpy_name_blocks(near: Node, far: Node) -> None:
    local, remote, size = (np.array([n], dtype=np.int64) for n in (near.address, far.address, SIZE))
    offsets = np.arange(0, SIZE, 8192, dtype=np.uint64).reshape(1, -1)
    lengths = np.full_like(offsets, 100)
    ticket = near.engine.submit_scatter_write(far.name, local, size, remote, size, offsets, offsets, lengths)
    assert ticket.drain(SOON) is Status.COMPLETED
    assert all(far.get(100, o) == near.get(100, o) for o in range(0, SIZE, 8192))


OK: dict[str, Any] = {
    "local_base_addresses": [8],
    "local_capacities": [64],
    "remote_base_addresses": [8],
    "remote_capacities": [64],
    "local_offsets": [[0]],
    "remote_offsets": [[0]],
    "lengths": [[8]],
}
REFUSED: dict[str, dict[str, Any]] = {
    "one byte past the local capacity": {"local_offsets": [[57]]},
    "one byte past the remote capacity": {"remote_offsets": [[57]]},
    "a wrapping offset": {"local_offsets": [[2**64 - 4]]},
    "a wrapping region": {"remote_base_addresses": [2**64 - 8]},
    "two regions and one capacity": {"local_base_addresses": [8, 8]},
    "two offsets and one length": {"local_offsets": [[0, 0]]},
    "two lists of offsets": {"remote_offsets": [[0], [0]]},
    "no lists": {"local_offsets": []},
}


@calls
@forms
@pytest.mark.parametrize("what", REFUSED)
def test_the_ticket_of_an_impossible_transfer_says_that_it_failed(
    near: Node, far: Node, direction: str, form: str, what: str
) -> None:
    ticket = getattr(near.engine, form.format(direction))(endpoint=far.name, **{**OK, **REFUSED[what]})
    assert ticket.status is Status.FAILED_DRAINED
    assert ticket.drained
    assert ticket.drain(0) is Status.FAILED_DRAINED


@calls
@forms
@pytest.mark.parametrize("name", (NOBODY, "no such host.invalid:1", "a\0b", ""))
def test_the_ticket_says_that_a_missing_peer_failed_the_transfer(
    near: Node, direction: str, form: str, name: str
) -> None:
    ticket = getattr(near.engine, form.format(direction))(endpoint=name, **OK)
    assert ticket.drain(SOON) is Status.FAILED_DRAINED
    assert ticket.drained


def test_the_ticket_says_that_an_unregistered_range_failed_the_transfer(near: Node, far: Node) -> None:
    ticket = near.engine.submit_scatter_read(far.name, [near.address], [8], [4096], [8], [[0]], [[0]], [[8]])
    assert ticket.drain(SOON) is Status.FAILED_DRAINED


@pytest.mark.parametrize("bad", (-1, 2**64, 1.0, None, "1"), ids=shown)
@pytest.mark.parametrize("place", OK)
def test_an_item_that_is_no_number_is_a_type_error(near: Node, far: Node, place: str, bad: Any) -> None:
    wrong = [[bad]] if place in ("local_offsets", "remote_offsets", "lengths") else [bad]
    with pytest.raises(TypeError):
        near.engine.submit_scatter_write(far.name, **{**OK, place: wrong})
    with pytest.raises(TypeError):
        near.engine.submit_scatter_write(None, **OK)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", (-1, 2**64, 1.5, None), ids=shown)
def test_a_time_is_whole_milliseconds(near: Node, far: Node, bad: Any) -> None:
    ticket = near.engine.submit_scatter_write(far.name, **{**OK, "lengths": [[0]]})
    with pytest.raises(TypeError):
        ticket.drain(bad)


def test_a_ticket_is_not_constructed() -> None:
    with pytest.raises(TypeError, match="No constructor defined"):
        ScatterTransferTicket()


def test_before_initialize_a_ticket_says_that_it_failed(fresh_engine: TransferEngine) -> None:
    assert fresh_engine.submit_scatter_read(NOBODY, **OK).drain(0) is Status.FAILED_DRAINED


def test_blocks_of_no_bytes_and_no_blocks_complete(near: Node, far: Node) -> None:
    changes: list[dict[str, Any]] = [{"lengths": [[0]]}, {name: [] for name in OK}]
    for some in changes:
        assert near.engine.submit_scatter_write(far.name, **{**OK, **some}).drain(SOON) is Status.COMPLETED


def test_a_transfer_goes_on_when_a_drain_gives_up_waiting(silent: RawTarget) -> None:
    node = Node()
    ticket = node.engine.submit_scatter_write(*whole(node, silent))
    for _ in range(2):
        assert ticket.drain(1) is Status.COMPLETION_UNKNOWN
        assert not ticket.drained
    silent.close()  # and now it fails
    assert ticket.drain(SOON) is Status.FAILED_DRAINED
    check_untouched(node)


def test_a_synchronous_one_that_does_not_end_is_given_up_and_leaves_memory_alone(silent: RawTarget) -> None:
    node = Node()
    node.engine._timeout = 0.1  # type: ignore[attr-defined]
    ticket = node.engine.scatter_transfer_sync_write_with_ticket(*whole(node, silent))
    assert ticket.status is Status.FAILED_DRAINED
    check_untouched(node)


@pytest.mark.parametrize("when", ("in time", "after its time"))
def test_ctrl_c_in_a_synchronous_one_ends_it_before_it_is_raised(
    silent: RawTarget, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    node = Node()
    node.engine._timeout = 0.0 if when == "after its time" else 60.0  # type: ignore[attr-defined]
    batches: list[int] = []

    def wait(transfer: _scatter.ScatterTransfer, timeout: float) -> int:
        batches.append(transfer._batch)
        if when == "in time" or len(batches) == 2:
            raise KeyboardInterrupt
        return _scatter.UNDER_WAY

    engine: Any = node.engine.get_engine()
    monkeypatch.setattr(_scatter.ScatterTransfer, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        node.engine.scatter_transfer_sync_write_with_ticket(*whole(node, silent))
    assert engine.batches.wait_for(batches[0], 0) == -1  # no such batch: it has ended, and was freed
    check_untouched(node)


def test_one_whose_pages_do_not_come_is_not_drained_before_they_do(far: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    if not absent.allowed():
        unavailable("userfaultfd, which makes pages that do not come, takes root or vm.unprivileged_userfaultfd=1")
    monkeypatch.setattr(_scatter, "GIVE_UP", 0.2)
    node, region = Node(), absent.AbsentRegion(SIZE)
    node.engine._timeout = 0.2  # type: ignore[attr-defined]
    ticket = node.engine.scatter_transfer_sync_read_with_ticket(
        far.name, [region.address], [SIZE], [far.address], [SIZE], [[0]], [[0]], [[SIZE]]
    )
    assert ticket.status is Status.COMPLETION_UNKNOWN
    region.come()
    assert ticket.drain(SOON) is not Status.COMPLETION_UNKNOWN
    assert ticket.drained


def test_dropping_the_ticket_of_a_transfer_waits_for_its_end(near: Node, far: Node) -> None:
    batches = len(near.engine.get_engine().batches)  # type: ignore[union-attr]
    assert near.engine.submit_scatter_write(
        far.name, [near.address], [SIZE], [far.address], [SIZE], [[0]], [[0]], [[SIZE]]
    )
    gc.collect()
    assert far.get(SIZE) == near.get(SIZE)
    assert len(near.engine.get_engine().batches) == batches  # type: ignore[union-attr]


def test_dropping_the_ticket_of_a_transfer_that_does_not_end_gives_it_up_and_leaves_memory_alone(
    silent: RawTarget,
) -> None:
    node = Node()
    node.engine._timeout = 0.1  # type: ignore[attr-defined]
    ticket = node.engine.submit_scatter_write(*whole(node, silent))
    assert ticket.status is Status.COMPLETION_UNKNOWN
    del ticket
    check_untouched(node)


def test_a_ticket_keeps_its_engine(far: Node) -> None:
    node = Node()
    wanted = node.get(SIZE)
    ticket = node.engine.submit_scatter_write(
        far.name, [node.address], [SIZE], [far.address], [SIZE], [[0]], [[0]], [[SIZE]]
    )
    del node.engine
    gc.collect()
    assert ticket.drain(SOON) is Status.COMPLETED
    assert far.get(SIZE) == wanted


def test_a_replaced_engine_gives_up_its_unfinished_transfers_and_completed_ones_stay_completed(
    silent: RawTarget, far: Node
) -> None:
    node = Node()
    done = node.engine.scatter_transfer_sync_write_with_ticket(
        far.name, [node.address], [8], [far.address], [8], [[0]], [[0]], [[8]]
    )
    unseen = node.engine.submit_scatter_write(far.name, [node.address], [8], [far.address], [8], [[0]], [[0]], [[8]])
    engine: Any = node.engine.get_engine()
    assert engine.batches.wait_for(unseen._transfer._batch, 20) == 0  # type: ignore[attr-defined]
    running = node.engine.submit_scatter_write(*whole(node, silent))
    assert node.engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
    assert [t.status for t in (done, unseen, running)] == [Status.COMPLETED, Status.COMPLETED, Status.FAILED_DRAINED]


def drain_into(ticket: ScatterTransferTicket, seen: list[Status]) -> None:
    seen.append(ticket.drain(SOON))


def test_many_threads_may_drain_one_ticket(near: Node, far: Node) -> None:
    for _ in range(20):
        ticket = near.engine.submit_scatter_write(
            far.name, [near.address], [SIZE], [far.address], [SIZE], [[0]], [[0]], [[SIZE]]
        )
        seen: list[Status] = []
        threads = [threading.Thread(target=drain_into, args=(ticket, seen)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [Status.COMPLETED] * 4


def test_in_a_forked_child_a_ticket_is_an_error(silent: RawTarget) -> None:
    node = Node()
    ticket = node.engine.submit_scatter_write(*whole(node, silent))
    child = os.fork()
    if child == 0:
        try:
            ticket.drain(0)
        except LibraryError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    silent.close()
    assert ticket.drain(SOON) is Status.FAILED_DRAINED
