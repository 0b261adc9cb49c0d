"""Plans that engines execute: random layouts, with memory of any kind on both sides, against NumPy's indexing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kvferry
from kvferry import Layout, Place, TransferError, plan, simulator
from kvferry._device import Runtime
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL
from mooncake.engine import TransferEngine
from support.inprocess import HOST, run_python

AXES = ("layer", "kv", "block", "token", "head", "dim")
DTYPES = (np.uint8, np.float16, np.float32, np.complex128)


@pytest.fixture(params=("0", "1"), ids=("tcp", "samehost"))
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TransferEngine]]:
    """Two engines that reach each other by TCP, or as engines on one host do. Both find simulated devices."""
    monkeypatch.setenv("KVFERRY_SAME_HOST", request.param)
    for variable, kind in (("KVFERRY_CUDA", "cuda"), ("KVFERRY_ASCENDCL", "npu")):
        monkeypatch.setenv(variable, simulator.library(kind))
    monkeypatch.setenv("KVFERRY_SIM_COST", "0")
    made = [TransferEngine(), TransferEngine()]
    for engine in made:
        assert engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
    yield made


def name(engine: TransferEngine) -> str:
    return f"{HOST}:{engine.get_rpc_port()}"


class OnDevice:
    """An array as it would be in a device's memory."""

    def __init__(self, array: Any, shift: int) -> None:
        address, readonly = array.__array_interface__["data"]
        self.dtype = array.dtype
        self.__cuda_array_interface__ = {**array.__array_interface__, "data": (address + shift, readonly)}
        self.__cuda_array_interface__["strides"] = array.strides


class Rank:
    """A process with a part of a cache, as arrays in one piece of memory, and the place of a request in it."""

    def __init__(
        self, rng: random.Random, cache: Any, layers: range, heads: range, tokens: int, runtime: Runtime | None
    ) -> None:
        self.layers, self.heads = layers, heads
        self.block_tokens = rng.choice((1, 2, 8, 16, 16, 128))
        self.first = rng.randrange(2 * self.block_tokens)
        self.blocks = math.ceil((self.first + tokens) / self.block_tokens) + rng.randrange(3)
        self.memory = np.frombuffer(rng.randbytes(self._bytes(cache) * 2 + 4096), np.uint8).copy()
        self.used = 0
        self.device = runtime.allocate(self.memory.nbytes) if runtime else None
        self.shift = self.device.address - self.memory.ctypes.data if self.device else 0
        self.parts: list[tuple[slice, slice, Any]] = []  # K and V, elements of a head, and the array
        layout = self._add(rng, cache)
        self.place = self._place(rng, layout, tokens)
        self.tokens = [self._position(self.first + i) for i in range(tokens)]

    def _bytes(self, cache: Any) -> int:
        tokens = self.blocks * self.block_tokens
        return int(len(self.layers) * cache.shape[1] * tokens * len(self.heads) * cache.shape[4] * cache.itemsize)

    def _add(self, rng: random.Random, cache: Any) -> Layout:
        """Hold the cache in one array or a few: with the layers apart or not, K and V, and the parts of a head."""
        kv, dim = cache.shape[1], cache.shape[4]
        cuts = [slice(0, kv)] if rng.random() < 0.5 else [slice(i, i + 1) for i in range(kv)]
        dims = [slice(0, dim)] if rng.random() < 0.7 or dim == 1 else [slice(0, 1), slice(1, dim)]
        layout = None
        for part in cuts:
            for elements in dims:
                found = self._array(rng, cache, part, elements)
                layout = found if layout is None else layout + found
        assert layout is not None
        return layout

    def _array(self, rng: random.Random, cache: Any, part: slice, elements: slice) -> Layout:
        both = part.stop - part.start == 2
        axes = [a for a in AXES if a != "kv" or both]
        if rng.random() < 0.8:  # as programs have them, but for NHD and HND
            i, j = axes.index("token"), axes.index("head")
            if rng.random() < 0.5:
                axes[i], axes[j] = axes[j], axes[i]
        else:
            rng.shuffle(axes)
        apart = axes[0] == "layer" and rng.random() < 0.5
        sizes = {
            "layer": len(self.layers),
            "kv": 2,
            "block": self.blocks,
            "token": self.block_tokens,
            "head": len(self.heads),
            "dim": elements.stop - elements.start,
        }
        shape = [sizes[a] for a in axes]
        self.used = -(-self.used // 16) * 16
        array = self.memory[self.used :][: int(np.prod(shape)) * cache.itemsize].view(cache.dtype).reshape(shape)
        self.used += array.nbytes
        whole = np.expand_dims(array, 0) if not both else array
        order = axes if both else ["kv", *axes]
        view = whole.transpose([order.index(a) for a in AXES])
        self.parts.append((part, elements, view))
        tensors: Any = OnDevice(array, self.shift) if self.device else array
        if apart:
            axes = axes[1:]
            tensors = [OnDevice(a, self.shift) if self.device else a for a in array]
        return Layout(
            tensors,
            " ".join(axes),
            layers=(self.layers.start, cache.shape[0]),
            heads=(self.heads.start, cache.shape[3]),
            dims=(elements.start, cache.shape[4]),
            kv=None if both or cache.shape[1] == 1 else "kv"[part.start],
        )

    def _place(self, rng: random.Random, layout: Layout, tokens: int) -> Place:
        if rng.random() < 0.6:
            needed = math.ceil((self.first + tokens) / self.block_tokens)
            self.table = self._numbers(rng, self.blocks)[:needed]
            self.slots = False
            return layout.blocks(np.array(self.table, np.uint64) if rng.random() < 0.5 else self.table, self.first)
        self.table = self._numbers(rng, self.blocks * self.block_tokens)[: self.first + tokens]
        self.slots = True
        return layout.slots(self.table, self.first)

    @staticmethod
    def _numbers(rng: random.Random, count: int) -> list[int]:
        stretch = rng.choice((1, 4, count))
        starts = list(range(0, count, stretch))
        rng.shuffle(starts)
        return [n for start in starts for n in range(start, min(start + stretch, count))]

    def _position(self, position: int) -> tuple[int, int]:
        if self.slots:
            return divmod(self.table[position], self.block_tokens)
        return self.table[position // self.block_tokens], position % self.block_tokens

    def fill(self, cache: Any) -> None:
        """Put the tokens of a cache [layer, kv, token, head, dim] into the arrays."""
        blocks, tokens = np.array(self.tokens).T
        layers, heads = (slice(part.start, part.stop) for part in (self.layers, self.heads))
        for part, elements, view in self.parts:
            view[:, :, blocks, tokens] = cache[layers, part, :, heads, elements]

    def to_device(self) -> None:
        if self.device:
            self.device.write(self.memory.tobytes())

    def from_device(self) -> Any:
        return np.frombuffer(self.device.read(self.memory.nbytes), np.uint8) if self.device else self.memory

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data) + self.shift


def ranks(rng: random.Random, cache: Any, tokens: int, runtimes: list[Runtime]) -> list[Rank]:
    """Processes that hold a cache by tensor and pipeline parallelism."""
    layers, heads = cache.shape[0], cache.shape[3]
    stages, parallel = rng.randint(1, min(2, layers)), rng.choice((1, 1, 2, 3, 4, 8))
    made = []
    for stage in range(stages):
        for rank in range(parallel):
            start = rank * heads // parallel
            mine = range(start, max(start + 1, (rank + 1) * heads // parallel))
            part = range(stage * layers // stages, (stage + 1) * layers // stages)
            made.append(Rank(rng, cache, part, mine, tokens, rng.choice([None, None, *runtimes])))
    return made


@pytest.mark.parametrize("seed", range(12))
def test_engines_move_what_a_plan_says_and_nothing_else(engines: list[TransferEngine], seed: int) -> None:
    rng = random.Random(seed)
    with CUDA() as cuda, AscendCL() as npu:
        for _ in range(3):
            move_at_random(rng, engines, [cuda, npu])


def move_at_random(rng: random.Random, engines: list[TransferEngine], runtimes: list[Runtime]) -> None:
    here, there = engines
    kv, dim = rng.choice(((2, 4), (2, 3), (1, 9)))
    heads, layers, tokens = rng.choice((1, 2, 4, 8)) if kv == 2 else 1, rng.randint(1, 3), rng.randint(1, 150)
    dtype = np.dtype(rng.choice(DTYPES))
    cache = np.frombuffer(rng.randbytes(layers * kv * tokens * heads * dim * dtype.itemsize), dtype)
    cache = cache.reshape(layers, kv, tokens, heads, dim)
    sources, destinations = ranks(rng, cache, tokens, runtimes), ranks(rng, cache, tokens, runtimes)
    wanted = []
    for rank in sources:
        rank.fill(cache)
    for rank in destinations:
        before = rank.memory.copy()
        rank.fill(cache)
        wanted.append(rank.memory.copy())
        rank.memory[:] = before
    push = rng.random() < 0.5
    for rank in (*sources, *destinations):
        rank.to_device()
        owner = here if (rank in sources) == push else there
        assert owner.register_memory(rank.address, rank.memory.nbytes) == 0
    made = plan([r.place for r in sources], [r.place for r in destinations], tokens)
    if push:
        for i in range(len(sources)):
            made.write(here, [name(there)] * len(destinations), source=i)
    else:
        for i in range(len(destinations)):
            made.read(here, [name(there)] * len(sources), destination=i)
    for rank, want in zip(destinations, wanted):
        assert np.array_equal(rank.from_device(), want)
    for rank in (*sources, *destinations):
        owner = here if (rank in sources) == push else there
        assert owner.unregister_memory(rank.address) == 0
        if rank.device:
            rank.device.close()


def small(memory: Any) -> Layout:
    return Layout(memory, "kv block token head dim")


def test_a_range_that_the_peer_does_not_have_is_an_error_that_says_so(engines: list[TransferEngine]) -> None:
    mine, theirs = np.zeros((2, 4, 8, 2, 4), np.float16), np.zeros((2, 4, 8, 2, 4), np.float16)
    made = plan(small(mine).blocks([0, 1]), small(theirs).blocks([3, 0]), 16)
    with pytest.raises(TransferError, match="rejected"):
        made.write(engines[0], name(engines[1]))
    with pytest.raises(TransferError, match=f"{HOST}:1: "):
        made.write(engines[0], f"{HOST}:1")


def test_mistakes_of_the_caller_are_errors_that_say_so(engines: list[TransferEngine]) -> None:
    made = plan(small(np.zeros((2, 4, 8, 2, 4))).blocks([0]), small(np.zeros((2, 4, 8, 2, 4))).blocks([1]), 8)
    with pytest.raises(ValueError, match="the plan needs peer 0, and 0 are named"):
        made.read(engines[0], [])
    with pytest.raises(ValueError, match="not initialized"):
        made.read(TransferEngine(), "x")


@pytest.mark.parametrize("peers", (1, 2))
def test_a_peer_that_does_not_answer_in_time_is_an_error_that_says_so(peers: int) -> None:
    done = run_python(f"""
from kvferry import TransferError
peer = StuckPeer()
e, m = start(), Mapping(peer.length)
assert e.transfer_sync_write(peer.name, m.address, peer.address, 1) == 0
peer.stop()
try:
    plan(blocks(m, 1), [blocks(peer, i) for i in range({peers})], 16).write(e, [peer.name] * {peers}, timeout=0.3)
except TransferError as error:
    print(error)
peer.kill()
""")
    assert done.returncode == 0, done.stderr
    assert "given up after 0.3 s" in done.stdout


def test_a_plan_says_what_it_moves() -> None:
    half = np.zeros((2, 4, 8, 2, 4), np.float16)
    whole = np.zeros((2, 4, 8, 4, 4), np.float16)
    sources = [Layout(half.copy(), "kv block token head dim", heads=(2 * i, 4)).blocks([0, 1]) for i in range(2)]
    made = plan(sources, small(whole).blocks([2, 3]), 16)
    assert made.transfers == tuple(kvferry.Moved(i, 0, 2 * 16, 2 * 16 * 2 * 4 * 2) for i in range(2))
    assert (made.ranges, made.bytes) == (64, 1024)
    assert repr(made) == "<Plan of 1024 bytes in 64 ranges, 2 transfers>"
    assert plan(sources, small(whole).blocks([2, 3]), 0).transfers == ()
