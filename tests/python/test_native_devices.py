"""The native package with memory of simulated NPUs and GPUs, and in the order of CUDA streams."""

from __future__ import annotations

import asyncio
import itertools
import math
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


@pytest.mark.parametrize(("here", "there"), [("npu", "cuda"), ("cuda", "npu")])
def test_a_plan_of_long_blocks_to_short_ones_moves_between_devices(devices: Devices, here: str, there: str) -> None:
    tokens, heads, dim = 256, 2, 16
    cache = some_bytes(tokens * heads * dim).reshape(2, 128, heads, dim)
    mine = devices.memory(here, cache)
    theirs = devices.memory(there, np.zeros(cache.nbytes, np.uint8))
    regions = devices.near.register(thing(mine, cache.nbytes)), devices.far.register(thing(theirs, cache.nbytes))
    source = Layout(thing(mine, 2, 128, heads, dim), "block token head dim").blocks([1, 0])
    destination = Layout(thing(theirs, 16, heads, 16, dim), "block head token dim").blocks(range(16))
    transfer = devices.peer.write(plan(source, destination, tokens))
    assert transfer.result(LIMIT) == cache.nbytes
    wanted = cache[::-1].reshape(16, 16, heads, dim).transpose(0, 2, 1, 3)
    assert contents(theirs) == wanted.tobytes()
    for region in regions:
        region.close()


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
