"""The native package with memory of simulated NPUs and GPUs, and in the order of CUDA streams."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, Union

import numpy as np
import pytest

from kvferry import Cancelled, Engine, Layout, Message, RangeRejected, TimedOut, TransferError, plan, simulator
from kvferry._device import Memory, Runtime
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL
from support.native import NOWHERE, some_bytes
from support.process import until
from support.streams import Stream

pytestmark = pytest.mark.devices

SIZE = 1 << 18
LIMIT = 30.0  # seconds that anything here may take
PLACES = ("host", "npu", "cuda")


class OnDevice:
    """Memory of a device as an array that PyTorch or CuPy would have there."""

    def __init__(self, memory: Memory, *shape: int) -> None:
        self.memory, self.shape, self.dtype = memory, shape, "torch.uint8"

    def data_ptr(self) -> int:
        return self.memory.address

    def element_size(self) -> int:
        return 1

    def stride(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))


class Devices:
    """The simulated devices' libraries, and two engines that use them."""

    def __init__(self) -> None:
        self.runtimes: dict[str, Runtime] = {"npu": AscendCL(), "cuda": CUDA()}
        self.near, self.far = Engine(), Engine()
        self.peer = self.near.open(self.far.name)
        self.streams: list[Stream] = []

    def memory(self, place: str, contents: Any) -> Union[Memory, Any]:
        if place == "host":
            return contents.copy()
        memory = self.runtimes[place].allocate(contents.nbytes)
        memory.write(contents.tobytes())
        return memory

    def stream(self) -> Stream:
        cuda = self.runtimes["cuda"]
        assert isinstance(cuda, CUDA)
        self.streams.append(Stream(cuda))
        return self.streams[-1]


def thing(memory: Any, *shape: int) -> Any:
    """What a program has for the memory, with a shape."""
    return OnDevice(memory, *shape) if isinstance(memory, Memory) else memory.reshape(shape)


def contents(memory: Any) -> bytes:
    return bytes(memory.read(memory.size)) if isinstance(memory, Memory) else memory.tobytes()


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    for variable, kind in (("KVFERRY_CUDA", "cuda"), ("KVFERRY_ASCENDCL", "npu")):
        monkeypatch.setenv(variable, simulator.library(kind))
    monkeypatch.setenv("KVFERRY_SIM_COST", "0")
    made = Devices()
    yield made
    for stream in made.streams:
        stream.close()
    made.near.close()
    made.far.close()


@pytest.mark.parametrize(("here", "there"), list(itertools.product(PLACES, PLACES)))
def test_bytes_move_between_all_kinds_of_memory(devices: Devices, here: str, there: str) -> None:
    source, target = some_bytes(SIZE), np.zeros(SIZE, np.uint8)
    mine, theirs = devices.memory(here, source), devices.memory(there, target)
    region = devices.near.register(thing(mine, 4, SIZE // 4))
    remote = devices.far.register(thing(theirs, SIZE))
    assert (
        devices.peer.write(
            [region[: SIZE // 2], region[SIZE // 2 :]], [remote[SIZE // 2 :], remote[: SIZE // 2]]
        ).result(LIMIT)
        == SIZE
    )
    turned = np.roll(source, SIZE // 2)
    assert contents(theirs) == turned.tobytes()
    assert devices.peer.read(region, remote).result(LIMIT) == SIZE
    assert contents(mine) == turned.tobytes()
    region.close()
    remote.close()


AXES = {"layer": 3, "kv": 2, "head": 4}  # and how many of each
DIMS = (1, 24, 128, 256)  # bytes of a head of one token


class Cache:
    """A cache of random form in a place, registered with an engine, and the blocks of some tokens in it."""

    def __init__(self, devices: Devices, engine: Engine, place: str, rng: random.Random, dim: int, tokens: int) -> None:
        block_tokens = rng.choice((1, 3, 16, 128))
        first = rng.randrange(block_tokens)
        needed = math.ceil((first + tokens) / block_tokens)
        counts = {**AXES, "token": block_tokens, "block": needed + rng.randrange(4)}
        self.axes = [*rng.sample(list(counts), len(counts)), "dim"]
        self.shape = (*(counts[name] for name in self.axes[:-1]), dim)
        self.before = some_bytes(math.prod(self.shape), rng.randrange(1 << 30)).reshape(self.shape)
        self.memory = devices.memory(place, self.before)
        self.region = engine.register(thing(self.memory, self.before.nbytes))
        table = rng.sample(range(counts["block"]), needed)
        self.place = Layout(thing(self.memory, *self.shape), " ".join(self.axes)).blocks(table, first)
        positions = range(first, first + tokens)
        self.where = [table[p // block_tokens] for p in positions], [p % block_tokens for p in positions]

    def tokens(self, cache: Any) -> Any:
        """The array as [block, token, layer, kv, head, dim]."""
        names = ("block", "token", *AXES, "dim")
        return cache.transpose([self.axes.index(name) for name in names])


@pytest.mark.parametrize("opcode", ("write", "read"))
@pytest.mark.parametrize(("here", "there"), list(itertools.product(PLACES, PLACES)))
def test_a_plan_moves_between_layouts_in_all_kinds_of_memory_and_nothing_else(
    devices: Devices, here: str, there: str, opcode: str
) -> None:
    rng = random.Random(f"{here} {there} {opcode}")
    for dim in DIMS:
        tokens = rng.randrange(1, 200)
        mine = Cache(devices, devices.near, here, rng, dim, tokens)
        theirs = Cache(devices, devices.far, there, rng, dim, tokens)
        source, destination = (mine, theirs) if opcode == "write" else (theirs, mine)
        move = devices.peer.write if opcode == "write" else devices.peer.read
        moved = move(plan(source.place, destination.place, tokens)).result(LIMIT)
        assert moved == tokens * dim * math.prod(AXES.values())
        wanted = destination.before.copy()
        destination.tokens(wanted)[destination.where] = source.tokens(source.before)[source.where]
        assert contents(destination.memory) == wanted.tobytes(), (mine.axes, theirs.axes, dim)
        assert contents(source.memory) == source.before.tobytes()
        mine.region.close()
        theirs.region.close()


class LikeTorch:
    def __init__(self, stream: Stream) -> None:
        self.cuda_stream = stream.handle


class LikeCupy:
    def __init__(self, stream: Stream) -> None:
        self.ptr = stream.handle


class WithProtocol:
    def __init__(self, stream: Stream) -> None:
        self.handle = stream.handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def of(byte: int) -> bytes:
    return bytes([byte]) * SIZE


class OnStream:
    """Memory of a GPU, all ones, a stream, and memory of the peer."""

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self.memory = devices.memory("cuda", np.ones(SIZE, np.uint8))
        self.region = devices.near.register(thing(self.memory, SIZE))
        self.remote = np.zeros(SIZE, np.uint8)
        self.far = devices.far.register(self.remote)
        self.stream = devices.stream()


@pytest.fixture
def on_stream(devices: Devices) -> OnStream:
    return OnStream(devices)


@pytest.mark.parametrize("wrap", (LikeTorch, LikeCupy, WithProtocol, lambda stream: stream.handle))
def test_a_transfer_takes_its_turn_in_a_stream(on_stream: OnStream, wrap: Any) -> None:
    stream = on_stream.stream
    stream.hold()
    stream.put(on_stream.memory, of(3))
    transfer = on_stream.devices.peer.write(on_stream.region, on_stream.far, stream=wrap(stream), notify="there")
    stream.put(on_stream.memory, of(4))
    assert not transfer.wait(0.05)
    assert not on_stream.remote.any()
    stream.go_on()
    assert transfer.result(LIMIT) == SIZE
    assert on_stream.remote.tobytes() == of(3)
    stream.wait()
    assert contents(on_stream.memory) == of(4)
    assert on_stream.devices.far.receive(LIMIT) == Message(b"there")


def test_a_plan_takes_its_turn_in_a_stream_and_is_awaited(on_stream: OnStream) -> None:
    source = Layout(thing(on_stream.memory, 4, 16, SIZE // 64), "block token dim").blocks([0, 1, 2, 3])
    destination = Layout(on_stream.remote.reshape(4, 16, SIZE // 64), "block token dim").blocks([3, 1, 2, 0])
    on_stream.stream.hold()
    on_stream.stream.put(on_stream.memory, of(5))

    async def program() -> None:
        made = plan(source, destination, 64)
        transfer = on_stream.devices.peer.write(made, stream=on_stream.stream.handle)
        on_stream.stream.go_on()
        assert await asyncio.wait_for(transfer, LIMIT) == SIZE

    asyncio.run(program())
    assert on_stream.remote.tobytes() == of(5)


def test_a_stream_goes_on_after_a_failure_which_is_the_transfers(on_stream: OnStream) -> None:
    stream, peer = on_stream.stream, on_stream.devices.peer
    failed = peer.write(on_stream.region, NOWHERE, stream=stream.handle)
    stream.put(on_stream.memory, of(6))
    fine = peer.write(on_stream.region, on_stream.far, stream=stream.handle)
    assert fine.result(LIMIT) == SIZE
    assert isinstance(failed.exception(LIMIT), RangeRejected)
    assert on_stream.remote.tobytes() == of(6)


def test_a_transfer_that_is_cancelled_before_its_turn_moves_nothing(on_stream: OnStream) -> None:
    stream = on_stream.stream
    stream.hold()
    transfer = on_stream.devices.peer.write(on_stream.region, on_stream.far, stream=stream.handle)
    assert transfer.cancel()
    with pytest.raises(Cancelled):
        transfer.result(LIMIT)
    stream.wait()
    assert not on_stream.remote.any()


def test_the_time_before_its_turn_is_no_part_of_the_time_limit(on_stream: OnStream) -> None:
    stream = on_stream.stream
    stream.hold()
    transfer = on_stream.devices.peer.write(on_stream.region, on_stream.far, stream=stream.handle, timeout=0.05)
    assert not transfer.wait(0.2)
    stream.go_on()
    assert transfer.wait(LIMIT)
    assert isinstance(transfer.exception(), (type(None), TimedOut))


def test_closing_an_engine_lets_its_streams_go_on(on_stream: OnStream) -> None:
    stream = on_stream.stream
    stream.hold()
    transfer = on_stream.devices.peer.write(on_stream.region, on_stream.far, stream=stream.handle)
    on_stream.devices.near.close()
    stream.go_on()
    until(lambda: not stream.busy(), LIMIT, "the stream goes on")
    assert transfer.exception() is not None
    assert not on_stream.remote.any()


def test_what_is_no_stream_is_refused(on_stream: OnStream) -> None:
    with pytest.raises(TypeError):
        on_stream.devices.peer.write(on_stream.region, on_stream.far, stream="s")
    with pytest.raises((TransferError, ValueError)):
        on_stream.devices.peer.write(on_stream.region, on_stream.far, stream=0x1234)
