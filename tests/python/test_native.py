"""The native package: engines, regions, peers, transfers and messages, for programs without an event loop."""

from __future__ import annotations

import array
import ctypes
import gc
import json
import math
import os
import pickle
import threading
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kvferry
from kvferry import (
    Cancelled,
    Descriptor,
    Engine,
    EngineClosed,
    EngineError,
    Layout,
    Message,
    PeerUnreachable,
    Range,
    RangeRejected,
    TimedOut,
    plan,
)
from kvferry._bindings import KVFERRY_ERR_IN_USE, kvferry_transfer_t
from kvferry._completions import Completions, Flight, Kept
from support import absent
from support.inprocess import run_python
from support.native import NOWHERE, SIZE, Couple, couple, some_bytes
from support.peers import unavailable
from support.process import until
from support.rawpeer import BASE, RawTarget, swallow

pytestmark = pytest.mark.each_path

LIMIT = 30.0  # seconds that anything here may take
PART = SIZE // 4


@pytest.fixture
def pair(path: str) -> Iterator[Couple]:
    with couple() as made:
        yield made


@pytest.fixture
def silent() -> Iterator[RawTarget]:
    """A peer that takes all that it is sent and never answers."""
    with RawTarget(on_data=swallow) as target:
        yield target


@pytest.fixture
def engine(path: str) -> Iterator[Engine]:
    with Engine() as made:
        yield made


# Moving bytes


def test_a_write_and_a_read_move_the_bytes_and_say_how_many(pair: Couple) -> None:
    source, back = some_bytes(), bytearray(SIZE)
    transfer = pair.peer.write(source, pair.region.range)
    assert transfer.result(LIMIT) == SIZE
    assert (pair.memory == source).all()
    assert pair.peer.read(back, pair.region.address).result(LIMIT) == SIZE
    assert back == source.tobytes()
    assert transfer.done()
    assert transfer.exception() is None
    assert transfer.progress[:2] == (SIZE, SIZE)
    assert transfer.progress.rate > 0
    assert not transfer.cancel(), "it had ended"
    assert repr(transfer) == f"<Transfer with {pair.far.name}: write {SIZE} bytes: has ended>"


def test_lists_move_each_piece_to_its_range(pair: Couple) -> None:
    source = some_bytes()
    registered = pair.near.register(source)
    pieces = [registered[10:20], source[100:1100], memoryview(source)[5000:5001], registered[SIZE:]]
    ranges: list[Any] = [pair.region[0:10], pair.region.range[500:1500], pair.region.address + 4000, pair.region[:0]]
    assert pair.peer.write(pieces, ranges).result(LIMIT) == 1011
    want = np.zeros(SIZE, np.uint8)
    want[0:10], want[500:1500], want[4000] = source[10:20], source[100:1100], source[5000]
    assert (pair.memory == want).all()
    assert pair.peer.write([], []).result(LIMIT) == 0


@pytest.mark.parametrize("push", (True, False), ids=("write", "read"))
def test_a_plan_moves_in_one_transfer(pair: Couple, push: bool) -> None:
    mine = some_bytes(2 * 4 * 8 * 2 * 4, seed=3).reshape(2, 4, 8, 2, 4)
    theirs = pair.memory[: mine.nbytes].reshape(2, 4, 2, 8, 4)
    if not push:
        theirs[:] = mine.transpose(0, 1, 3, 2, 4)
        wanted, mine = mine, np.zeros_like(mine)
    here = Layout(mine, "kv block token head dim").blocks([0, 1, 2, 3])
    there = Layout(theirs, "kv block head token dim").blocks([3, 2, 1, 0] if push else [0, 1, 2, 3])
    made = plan(here, there, 32) if push else plan(there, here, 32)
    transfer = pair.peer.write(made, notify="done") if push else pair.peer.read(made)
    assert transfer.result(LIMIT) == mine.nbytes
    if push:
        assert (theirs == mine.transpose(0, 1, 3, 2, 4)[:, ::-1]).all()
        assert pair.far.receive(LIMIT) == Message(b"done")
    else:
        assert (mine == wanted).all()
    twice = plan([here, here], there, 32) if push else plan([there, there], here, 32)
    assert pair.peer.write(twice, source=1).result(LIMIT) == 0, "they have nothing in common"


def test_plans_take_native_engines(pair: Couple) -> None:
    half = some_bytes(2 * 8 * 4, seed=4).reshape(2, 8, 4)
    whole = pair.memory[: half.nbytes].reshape(2, 8, 4)
    here, there = (Layout(tensor, "block token dim").blocks([0, 1]) for tensor in (half, whole))
    plan(here, there, 16).write(pair.near, pair.far.name)
    assert (whole == half).all()


def test_ten_thousand_transfers_are_under_way_at_once(pair: Couple) -> None:
    count, size = 10_000, 64
    source = some_bytes(count * size)
    transfers = [
        pair.peer.write(source[i * size : (i + 1) * size], pair.region.address + i * size) for i in range(count)
    ]
    assert sum(transfer.result(LIMIT) for transfer in transfers) == count * size
    assert (pair.memory[: count * size] == source).all()
    assert pair.near.stats()["in_flight"]["batches"] == 0


def test_threads_share_an_engine(pair: Couple) -> None:
    source, failures = some_bytes(), []

    def move(part: int) -> None:
        try:
            at = slice(part * PART, (part + 1) * PART)
            for _ in range(50):
                assert pair.peer.write(source[at], pair.region[at]).result(LIMIT) == PART
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=move, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not failures
    assert (pair.memory == source).all()


# Failures


def test_a_rejected_range_is_named(pair: Couple) -> None:
    source = some_bytes(100)
    transfer = pair.peer.write([source[:40], source[40:]], [pair.region.address, NOWHERE])
    with pytest.raises(RangeRejected) as caught:
        transfer.result(LIMIT)
    e = caught.value
    address = source.__array_interface__["data"][0] + 40
    assert (e.index, e.local, e.remote, e.nbytes) == (1, address, NOWHERE, 60)
    assert e.who == pair.far.name
    assert e.what.startswith("write 100 bytes in 2 ranges, range 1: 60 bytes, here at ")
    assert "rejected" in e.why
    assert str(e) == f"{e.who}: {e.what}: {e.why}"
    assert str(transfer.exception()) == str(e)
    again = pickle.loads(pickle.dumps(e))
    assert (str(again), again.index, again.remote) == (str(e), 1, NOWHERE)


def test_a_failed_transfer_keeps_nothing_of_those_who_asked_for_its_result(pair: Couple) -> None:
    transfer = pair.peer.write(some_bytes(10), NOWHERE)
    gone: list[Any] = []

    def ask() -> int:
        local = np.zeros(1)
        gone.append(weakref.ref(local))
        try:
            transfer.result(LIMIT)
        except RangeRejected as e:
            return len(traceback.extract_tb(e.__traceback__))
        return 0

    assert len({ask() for _ in range(3)}) == 1, "each traceback has the frames of its own call alone"
    assert [one() for one in gone] == [None] * 3


def test_access_is_what_the_region_says(pair: Couple) -> None:
    memory = np.ones(100, np.uint8)
    region = pair.far.register(memory, access="read")
    assert pair.peer.read(bytearray(100), region).result(LIMIT) == 100
    with pytest.raises(RangeRejected):
        pair.peer.write(bytearray(100), region).result(LIMIT)
    assert memory.all()
    assert "access read" in repr(region)


def test_nobody_at_a_name_is_unreachable(engine: Engine) -> None:
    with pytest.raises(PeerUnreachable, match=r"^127.0.0.1:1: open: .*refused") as caught:
        engine.open("127.0.0.1:1")
    assert caught.value.done == 0


def test_a_time_limit_ends_a_transfer_and_says_how_far_it_came(engine: Engine, silent: RawTarget) -> None:
    peer, memory = engine.open(silent.name), some_bytes()
    with pytest.raises(TimedOut, match="0 of 1048576 bytes are known to have arrived") as caught:
        peer.write(memory, BASE, timeout=0.1).result(LIMIT)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.done == 0
    with Engine(timeout=0.1) as hasty, pytest.raises(TimedOut):
        hasty.open(silent.name).write(memory, BASE).result(LIMIT)


def test_a_wait_that_is_over_is_not_the_end(engine: Engine, silent: RawTarget) -> None:
    transfer = engine.open(silent.name).write(some_bytes(), BASE, timeout=math.inf)
    assert not transfer.wait(0.01)
    for ask in (transfer.result, transfer.exception):
        with pytest.raises(TimeoutError, match=r"still under way after 0\.01 s: 0 of 1048576") as caught:
            ask(0.01)
        assert not isinstance(caught.value, kvferry.Error)
    assert not transfer.done()
    assert transfer.progress[:2] == (0, SIZE)
    assert "under way" in repr(transfer)
    assert transfer.cancel()
    with pytest.raises(Cancelled, match="given up by the caller; 0 of 1048576") as ended:
        transfer.result(LIMIT)
    assert ended.value.done == 0


def test_closing_an_engine_ends_its_transfers(path: str, silent: RawTarget) -> None:
    engine = Engine()
    transfer = engine.open(silent.name).write(some_bytes(), BASE)
    waiter: list[Any] = []
    thread = threading.Thread(target=lambda: waiter.append(transfer.exception(LIMIT)))
    thread.start()
    engine.close()
    thread.join(LIMIT)
    assert isinstance(waiter[0], EngineClosed)
    assert transfer.done()
    assert not transfer.cancel()
    with pytest.raises(EngineClosed, match=f"^{silent.name}: write 1048576 bytes: the engine was closed"):
        transfer.result()


def test_a_closed_engine_says_so(pair: Couple) -> None:
    name = pair.near.name
    done = pair.peer.write(some_bytes(10), pair.region.address)
    until(done.done, LIMIT, "the end of the transfer")
    pair.near.close()
    pair.near.close()
    assert done.result() == 10
    for call in (
        lambda: pair.peer.write(some_bytes(10), pair.region.address),
        lambda: pair.near.register(bytearray(10)),
        lambda: pair.near.open("127.0.0.1:1"),
        lambda: pair.near.send(pair.peer, b"x"),
        lambda: pair.near.receive(0),
        lambda: pair.near.stats(),
        lambda: pair.near.__enter__(),
    ):
        with pytest.raises(EngineClosed, match=f"{name}: .*the engine is closed"):
            call()
    assert pair.near.closed
    assert repr(pair.near) == f"<Engine {name}, closed>"


# Memory


class At:
    """An array of bytes at an address."""

    def __init__(self, address: int, size: int) -> None:
        self.shape, self.strides = (size,), None
        self.__array_interface__ = {"data": (address, False), "typestr": "|u1"}


class WithInterface:
    """An array as libraries for GPUs have them."""

    def __init__(self, of: Any, readonly: bool = False) -> None:
        address = of.__array_interface__["data"][0]
        self.of = of
        self.__cuda_array_interface__ = {
            "data": (address, readonly),
            "shape": of.shape,
            "strides": of.strides,
            "typestr": of.__array_interface__["typestr"],
            "version": 3,
        }


class WithDLPack:
    """An array with DLPack alone."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __dlpack__(self) -> Any:
        return self.of.__dlpack__()


class LikeTorch:
    """An array with a tensor's methods."""

    def __init__(self, of: Any) -> None:
        self.of, self.shape, self.dtype = of, of.shape, "torch.uint8"

    def data_ptr(self) -> int:
        return int(self.of.__array_interface__["data"][0])

    def element_size(self) -> int:
        return int(self.of.itemsize)

    def stride(self) -> tuple[int, ...]:
        return tuple(stride // self.of.itemsize for stride in self.of.strides)


WRAPPERS: dict[str, Any] = {
    "NumPy": lambda a: a,
    "memoryview": memoryview,
    "CUDA": WithInterface,
    "DLPack": WithDLPack,
    "PyTorch": LikeTorch,
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@wrappers
def test_every_kind_of_array_is_memory(pair: Couple, wrap: Any) -> None:
    source = some_bytes(24000).view(np.uint16).reshape(3, 4000)
    with pair.near.register(wrap(source)) as region:
        assert region.nbytes == len(region) == 24000
        assert region.address == source.__array_interface__["data"][0]
        assert pair.peer.write(region, pair.region[:24000]).result(LIMIT) == 24000
    assert pair.peer.write(wrap(source), pair.region.address + 24000).result(LIMIT) == 24000
    assert (pair.memory[:48000].view(np.uint16).reshape(2, 3, 4000) == source).all()


@wrappers
def test_memory_that_is_not_contiguous_is_refused(pair: Couple, wrap: Any) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 200\) and strides of \(800, 2\) bytes is not contiguous"):
        pair.near.register(wrap(np.zeros((3, 400), np.uint16)[:, :200]))
    for fine in (np.zeros((1, 400), np.uint16)[:, :200], np.zeros((4, 1, 7), np.uint16)):
        pair.near.register(wrap(fine)).close()


def test_buffers_of_all_kinds_are_memory(pair: Couple) -> None:
    for memory in (bytearray(b"abcdefgh"), array.array("d", [1.0]), memoryview(b"abcdefgh"), b"abcdefgh"):
        assert pair.peer.write(memory, pair.region.address).result(LIMIT) == 8
        assert pair.memory[:8].tobytes() == bytes(memoryview(memory).cast("B"))


def test_read_only_memory_is_read_only(pair: Couple) -> None:
    frozen = np.zeros(100, np.uint8)
    frozen.flags.writeable = False
    for memory in (frozen, bytes(100), WithInterface(frozen, readonly=True)):
        with pytest.raises(ValueError, match="is read-only: register it"):
            pair.far.register(memory)
        with pytest.raises(ValueError, match="is read-only: nothing can be read into it"):
            pair.peer.read(memory, pair.region.address)
    with pair.near.register(frozen, access="read") as region:
        for memory in (region, region[10:]):
            with pytest.raises(ValueError, match="is read-only: nothing"):
                pair.peer.read(memory, pair.region.address)


def test_what_is_no_memory_is_refused(pair: Couple) -> None:
    with pytest.raises(TypeError, match=r"memory is needed: a tensor.* not int"):
        pair.near.register(5)
    with pytest.raises(TypeError, match="not list"):
        pair.near.register([1, 2])
    objects: Any = np.array([[1], "two"], object), np.zeros(2, [("a", "i4"), ("b", object)]), (ctypes.py_object * 2)()
    for memory in objects:
        with pytest.raises(TypeError, match="Python objects, which are addresses of this process"):
            pair.near.register(memory)
        with pytest.raises(TypeError, match="Python objects, which are addresses of this process"):
            pair.peer.read(memory, pair.region.address)
    pair.near.register(np.zeros(2, [("Offset", "i4"), ("b", "i4")])).close()
    with pytest.raises(ValueError, match="no bytes to register"):
        pair.near.register(bytearray())
    with pytest.raises(ValueError, match="access must be one of"):
        pair.near.register(bytearray(5), access="all")
    with pytest.raises(kvferry.Error, match=f"^{pair.far.name}: register 10 bytes at 0x.*: .*overlap"):
        pair.far.register(pair.memory[5:15])


def test_sides_that_do_not_match_are_refused(pair: Couple) -> None:
    with pytest.raises(ValueError, match="100 bytes of local memory do not match 1048576 bytes of the peer"):
        pair.peer.write(bytearray(100), pair.region)
    with pytest.raises(ValueError, match="2 pieces of local memory do not match 1 ranges"):
        pair.peer.write([bytearray(1), bytearray(1)], [pair.region[:1]])
    with pytest.raises(TypeError, match="remote says where"):
        pair.peer.write(bytearray(100))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="source and destination are for plans"):
        pair.peer.write(bytearray(1), 5, source=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="remote must be from 0 to"):
        pair.peer.write(bytearray(1), -1)
    for limit in (0, -1, math.nan):
        with pytest.raises(ValueError, match="a time limit is more than 0 seconds"):
            pair.peer.write(bytearray(1), 5, timeout=limit)
    transfer = pair.peer.write(bytearray(1), pair.region[:1])
    assert transfer.wait(LIMIT)
    with pytest.raises(TypeError, match="a callback is a function, not None"):
        transfer.add_done_callback(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than 0 seconds, not nan"):
        Engine(start_timeout=math.nan)


def test_slices_are_parts_in_bytes(engine: Engine) -> None:
    region = engine.register(bytearray(100))
    assert region[10:].address == region.address + 10
    assert (region[10:-10].nbytes, len(region[20:10]), region[10:30][5:].nbytes) == (80, 0, 15)
    assert region[10:30][5:] == Range(region.address + 15, 15) == region.range[15:30]
    assert region[:5].region is region
    with pytest.raises(IndexError, match="byte 101 is outside a range of 100 bytes"):
        region[:101]
    with pytest.raises(ValueError, match="its step is 1"):
        region[::2]
    with pytest.raises(TypeError, match="is a slice of bytes"):
        region[5]  # type: ignore[index]
    with pytest.raises(ValueError, match="wrap around"):
        Range(2**64 - 1, 2)
    assert pickle.loads(pickle.dumps([region.range, region[5:]])) == [region.range, region.range[5:]]
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(region)


def test_a_region_is_registered_until_it_is_closed(pair: Couple) -> None:
    with pair.far.register(bytearray(100)) as region:
        assert pair.peer.write(bytes(100), region).result(LIMIT) == 100
    region.close()
    assert region.closed
    with pytest.raises(RangeRejected):
        pair.peer.write(bytes(100), region.range).result(LIMIT)
    with pytest.raises(ValueError, match=r"closed> is already closed"):
        pair.peer.write(region, pair.region[:100])
    with pytest.raises(ValueError, match="already closed"):
        region.__enter__()


def test_a_region_keeps_its_memory_and_its_slices_keep_it(pair: Couple) -> None:
    memory = np.zeros(100, np.uint8)
    gone, address = weakref.ref(memory), memory.__array_interface__["data"][0]
    part: Any = pair.far.register(memory)[5:]
    del memory
    gc.collect()
    assert gone() is not None
    assert pair.peer.write(bytes(100), address).result(LIMIT) == 100
    del part
    gc.collect()
    assert gone() is None
    with pytest.raises(RangeRejected):
        pair.peer.write(bytes(100), address).result(LIMIT)


def test_a_closed_engine_lets_go_of_its_memory(path: str) -> None:
    engine, memory = Engine(), np.zeros(100, np.uint8)
    gone = weakref.ref(memory)
    region = engine.register(memory)
    engine.close()
    region.close()
    del memory, region
    gc.collect()
    assert gone() is None


def test_memory_outlives_the_references_to_it_until_its_transfer_has_ended(engine: Engine, silent: RawTarget) -> None:
    peer = engine.open(silent.name)
    plain, registered = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    gone = [weakref.ref(plain), weakref.ref(registered)]
    transfers = [peer.write(plain, BASE), peer.write(engine.register(registered)[5:], BASE)]
    dropped = peer.write([plain, registered], [BASE, BASE])
    del plain, registered
    gc.collect()
    assert all(one() is not None for one in gone)
    for transfer in transfers:
        transfer.cancel()
        assert isinstance(transfer.exception(LIMIT), Cancelled)
    assert all(one() is not None for one in gone)
    del transfer, transfers, dropped
    gc.collect()
    assert all(one() is not None for one in gone), "the one that was dropped goes on"
    engine.close()
    gc.collect()
    assert all(one() is None for one in gone)


def test_an_engine_ends_when_the_last_reference_goes_with_transfers_under_way(path: str, silent: RawTarget) -> None:
    engine, memory = Engine(), np.zeros(SIZE, np.uint8)
    gone = weakref.ref(memory), weakref.ref(engine)
    engine.open(silent.name).write(engine.register(memory), BASE)
    del engine, memory
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_memory_that_something_stuck_may_use_is_kept_when_the_engine_is_closed(pair: Couple) -> None:
    """Its pages do not come until the end of the test: a copy waits for them, and cannot be ended."""
    if not absent.allowed():
        unavailable("userfaultfd, which makes pages that do not come, takes root or vm.unprivileged_userfaultfd=1")
    region = absent.AbsentRegion(SIZE)
    memory = WithInterface(At(region.address, SIZE))
    gone = weakref.ref(memory)
    transfer = pair.peer.read(memory, pair.region)
    plain = np.zeros(100, np.uint8)
    also = weakref.ref(plain)
    registered = pair.near.register(plain)
    region.wait_for_touch()
    pair.near.close()
    assert isinstance(transfer.exception(), EngineClosed)
    del memory, transfer, plain
    registered.close()
    del registered
    gc.collect()
    assert pair.near._engine.stuck
    assert gone() is not None
    assert also() is not None
    region.come()


def test_a_transfer_that_is_dropped_arrives(pair: Couple) -> None:
    source = some_bytes()
    pair.peer.write(source, pair.region, notify=Message(b"1", "arrived"))
    assert pair.far.receive(LIMIT) == Message(b"1", "arrived")
    assert (pair.memory == source).all()


# Callbacks


def test_callbacks_are_called_by_one_thread_which_ends_with_the_engine(pair: Couple) -> None:
    threads: list[str] = []
    called = threading.Semaphore(0)

    def callback(transfer: kvferry.Transfer) -> None:
        assert transfer.done()
        threads.append(threading.current_thread().name)
        called.release()

    with RawTarget(on_data=swallow) as silent:
        waiting = [pair.near.open(silent.name).write(some_bytes(10), BASE) for _ in range(20)]
        for transfer in waiting:
            transfer.add_done_callback(callback)
            transfer.cancel()
        for _ in waiting:
            assert called.acquire(timeout=LIMIT)
    assert threads == ["kvferry-callbacks"] * 20
    transfer.add_done_callback(callback)
    assert threads[-1] == threading.current_thread().name, "it had ended"
    pair.near.close()
    assert "kvferry-callbacks" not in [thread.name for thread in threading.enumerate()]


def test_a_callback_that_raises_disturbs_no_other(
    engine: Engine, silent: RawTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    called = threading.Event()
    transfer = engine.open(silent.name).write(some_bytes(10), BASE)

    def fail(_: Any) -> None:
        raise KeyError("mine")

    transfer.add_done_callback(fail)
    transfer.add_done_callback(lambda _: called.set())
    transfer.cancel()
    assert called.wait(LIMIT)
    assert [str(e) for e in raised] == ["'mine'"]
    transfer.add_done_callback(fail)
    assert len(raised) == 2


def test_a_callback_may_start_transfers_and_close_the_engine(path: str) -> None:
    with couple() as pair:
        closed = threading.Event()

        def close(_: Any) -> None:
            pair.near.close()
            closed.set()

        def again(_: Any) -> None:
            pair.peer.write(some_bytes(10), pair.region.address).add_done_callback(close)

        pair.peer.write(some_bytes(10), pair.region.address).add_done_callback(again)
        assert closed.wait(LIMIT)


def test_a_callback_is_called_though_nobody_has_the_transfer(engine: Engine, silent: RawTarget) -> None:
    called = threading.Event()
    engine.open(silent.name).write(some_bytes(10), BASE, timeout=0.2).add_done_callback(lambda _: called.set())
    gc.collect()
    assert called.wait(LIMIT)


class Waits(bytearray):
    """Memory whose end waits for another thread, which uses a transfer."""

    transfer: Any = None
    ended: Any = None  # whether that thread has come to its end

    def __del__(self) -> None:
        thread = threading.Thread(target=self.transfer.add_done_callback, args=(lambda _: None,), daemon=True)
        thread.start()
        thread.join(LIMIT)
        self.ended.append(not thread.is_alive())


def test_the_end_of_memory_may_wait_for_other_threads(pair: Couple, silent: RawTarget) -> None:
    memory = Waits(10)
    memory.transfer, memory.ended = pair.near.open(silent.name).write(b"bytes", BASE), []
    ended = memory.ended
    transfer = pair.peer.write(memory, pair.region[:10])
    del memory
    assert transfer.result(LIMIT) == 10
    assert ended == [True]


def test_a_transfer_that_has_ended_keeps_no_memory(pair: Couple) -> None:
    memory = np.zeros(SIZE, np.uint8)
    gone = weakref.ref(memory)
    transfer = pair.peer.write(memory, pair.region)
    del memory
    assert transfer.result(LIMIT) == SIZE
    gc.collect()
    assert gone() is None


def test_callbacks_are_called_when_the_engine_is_closed(path: str, silent: RawTarget) -> None:
    engine, ended = Engine(), []
    transfer = engine.open(silent.name).write(some_bytes(10), BASE)
    transfer.add_done_callback(lambda t: ended.append(t.exception()))
    engine.close()
    assert [type(e) for e in ended] == [EngineClosed]


# Messages


def test_messages_are_bytes(pair: Couple) -> None:
    sent = [Message(b"text", "a"), Message(b"\0\xff\x80", "b"), Message("ä€".encode()), Message(b"", "c;base64x")]
    for message in sent:
        assert pair.peer.send(message).result(LIMIT) == 0
    assert [pair.far.receive(LIMIT) for _ in sent] == sent
    for wrong in (Message(5), Message("text"), Message(b"", None)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"a kvferry.Message has bytes, and a str as its name, not Message\("):
            pair.peer.send(wrong)
    assert pair.far.receive(0) is None
    assert pair.far.receive(0.01) is None
    assert Message(b"a\xff").text == "a\ufffd"
    pair.near.send(pair.far.name, "by name").result(LIMIT)
    assert pair.far.receive() == Message(b"by name")
    for wrong in (Message(b"", "x;base64"), Message(b"", "x\0")):
        with pytest.raises(ValueError, match="the name of a message must not"):
            pair.peer.send(wrong)
    with pytest.raises(TypeError, match="a message is bytes, a str or"):
        pair.peer.send(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another engine"):
        pair.far.send(pair.peer, b"x")


def test_a_message_that_is_not_accepted_is_an_error(path: str) -> None:
    with Engine(max_messages=1) as full, Engine() as sender:
        sender.send(full.name, b"1").result(LIMIT)
        with pytest.raises(kvferry.TransferError, match="MC_HANDSHAKE_MAX_NOTIFY_ENTRIES"):
            sender.send(full.name, b"2").result(LIMIT)
        assert full.receive(LIMIT) == Message(b"1")
        sender.send(full.name, b"3").result(LIMIT)


def test_a_thread_that_waits_for_a_message_ends_with_the_engine(path: str) -> None:
    engine, received = Engine(), []
    thread = threading.Thread(target=lambda: received.append(engine.receive()))
    thread.start()
    until(lambda: "kvferry-callbacks" in [t.name for t in threading.enumerate()], LIMIT, "the thread waits")
    engine.close()
    thread.join(LIMIT)
    assert received == [None]


# Making engines


def test_a_descriptor_goes_through_any_side_channel(pair: Couple) -> None:
    text = pair.far.describe(pair.region, pair.region[5:10]).json()
    assert json.loads(text)["name"] == pair.far.name
    peer = pair.near.open(Descriptor.from_json(text))
    assert peer.ranges == (pair.region.range, pair.region.range[5:10])
    assert peer.write(b"12345", peer.ranges[1]).result(LIMIT) == 5
    assert pair.memory[5:10].tobytes() == b"12345"
    assert Descriptor.from_json(text) == pair.far.describe(pair.region, pair.region[5:10])
    for wrong in (
        "",
        "[]",
        "{}",
        '{"kvferry_descriptor":1,"name":5,"ranges":[]}',
        text.replace(":1,", ":2,"),
        "[" * 9999,
        text + " " * (1 << 20),
    ):
        with pytest.raises(ValueError, match="no descriptor"):
            Descriptor.from_json(wrong)
    with pytest.raises(ValueError, match="its version is 2, and 1 is needed"):
        Descriptor.from_json(text.replace(":1,", ":2,", 1))
    with pytest.raises(ValueError, match="it has no 'kvferry_descriptor'"):
        Descriptor.from_json('{"kvferry_layout":1}')


def test_an_engine_takes_its_settings_as_arguments(path: str, tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef" * 4)
    with Engine(secret_file=secret) as mine, Engine(secret_file=str(secret)) as friend, Engine() as stranger:
        assert mine.stats()["security"]["mode"] == "require"
        mine.open(friend.name)
        with pytest.raises(PeerUnreachable):
            mine.open(stranger.name, timeout=LIMIT)
    with Engine(listen=["127.0.0.1"], allow="127.0.0.0/8", settings={"MC_RETRY_CNT": "3"}, max_sessions=7) as limited:
        assert limited.stats()["sessions"]["limit"] == 7
        assert limited.name == f"127.0.0.1:{limited.port}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"settings": {"KVFERRY_MAX_SESSION": "5"}}, "KVFERRY_MAX_SESSION.* is no setting"),
        ({"max_sessions": 0}, "KVFERRY_MAX_SESSIONS: .*0.* is not valid"),
        ({"security": "some"}, "KVFERRY_SECURITY"),
        ({"listen": "192.0.2.1"}, "192.0.2.1"),
        ({"metadata": "nowhere"}, "nowhere"),
    ],
)
def test_an_engine_that_cannot_be_made_says_why(path: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(EngineError, match=text):
        Engine(**arguments)


def test_arguments_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="a time limit is more than 0"):
        Engine(timeout=0)
    with pytest.raises(TypeError):
        Engine(5)  # type: ignore[arg-type]


def test_an_engine_that_nobody_closes_ends_with_the_interpreter(path: str) -> None:
    done = run_python(
        """
import kvferry
from support.rawpeer import BASE, RawTarget, swallow
target = RawTarget(on_data=swallow)
engine = kvferry.Engine()
region = engine.register(bytearray(1 << 20))
transfer = engine.open(target.name).write(region, BASE, timeout=float("inf"))
transfer.add_done_callback(print)
target.over.set()
print("the end")
""",
        KVFERRY_SAME_HOST=os.environ["KVFERRY_SAME_HOST"],
    )
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "the end"), done.stderr


def test_ctrl_c_ends_a_wait_and_the_transfer_goes_on(path: str) -> None:
    done = run_python(
        """
import kvferry
from support.rawpeer import BASE, RawTarget, swallow
with RawTarget(on_data=swallow) as target, kvferry.Engine() as engine:
    transfer = engine.open(target.name).write(bytearray(1 << 20), BASE)
    for wait in (transfer.result, engine.receive):
        interrupt_soon()
        try:
            wait()
        except KeyboardInterrupt:
            print("interrupted", transfer.done())
    transfer.cancel()
    print(type(transfer.exception()).__name__)
"""
    )
    assert done.stdout == "interrupted False\ninterrupted False\nCancelled\n", done.stderr


def test_a_forked_child_gets_errors_and_makes_its_own_engine(path: str) -> None:
    done = run_python(
        """
import asyncio, gc, kvferry
from support.rawpeer import BASE, RawTarget, swallow
target = RawTarget(on_data=swallow)
engine = kvferry.Engine()
region = engine.register(bytearray(1 << 20))
peer = engine.open(target.name)
transfer = peer.write(region, BASE)
transfer.add_done_callback(print)
engine._completions.lock.acquire()  # as another thread may have done

def refused(f):
    try:
        f()
    except kvferry.LibraryError as e:
        assert "fork" in str(e), e
    else:
        raise AssertionError(f)

def check():
    for f in (
        lambda: peer.write(region, BASE), lambda: engine.open("x"), lambda: engine.register(bytearray(5)),
        transfer.result, transfer.done, lambda: transfer.add_done_callback(print), transfer.cancel,
        lambda: asyncio.run(transfer._awaited()), engine.stats, engine.messages, lambda: engine.receive(1),
        engine.__enter__, lambda: engine.send(peer, b"x"),
    ):
        refused(f)
    engine.close()
    region.close()
    with kvferry.Engine() as own:
        memory = own.register(bytearray(5))
        assert own.open(own.name).write(b"hello", memory).result() == 5
        assert bytes(memory.registration.buffer.owner._buffer.obj) == b"hello"

print(child(check))
engine._completions.lock.release()
transfer.cancel()
print(type(transfer.exception()).__name__)
engine.close()
"""
    )
    assert done.stdout.splitlines()[0] == "0", done.stderr
    assert "Cancelled" in done.stdout


class _Interrupted:
    """A library whose kvferry_start is interrupted by Ctrl-C when the transfer is under way, and stuck from then on."""

    def kvferry_start(self, _engine: int, _what: Any, _size: int, batch: Any) -> int:
        batch._obj.value = 7
        raise KeyboardInterrupt

    def kvferry_batch_discard(self, _engine: int, _batch: int) -> int:
        return KVFERRY_ERR_IN_USE


def test_memory_of_a_start_that_was_interrupted_is_kept_while_something_is_stuck() -> None:
    kept = Kept()
    functions: Any = _Interrupted()
    flight = Flight(keep=bytearray(5))
    with pytest.raises(KeyboardInterrupt):
        Completions(functions, 0, kept).start(kvferry_transfer_t(), flight)
    assert flight.keep == bytearray(5)
    assert kept.left == [flight]
    kept.release()
    assert flight.keep is None
