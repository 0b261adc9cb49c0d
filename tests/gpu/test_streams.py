"""Transfers that are put on a stream of CUDA: after what was put there before, before what is put there later, and
without the program having to wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support import machine
from support.inprocess import run_python
from support.machine import MIB, check, fill, gpu
from support.memory import Memory
from support.peers import Peers

SIZE = 4 * MIB
STEP = SIZE // 64
BLOCKS = [(i * STEP, SIZE - (i + 1) * STEP, 4096 * (1 + i % 3)) for i in range(64)]  # offsets here and there, lengths
WAYS = {"one": [(0, 0, SIZE)], "batch": BLOCKS}
LIMIT = 60.0  # seconds

# The GPU is kept busy long enough for a program that does not wait to be ahead of it.
BEGIN = """
import torch

stream = torch.cuda.Stream() if STREAM == "own stream" else torch.cuda.default_stream()

def busy():
    torch.cuda._sleep(600_000_000)

def put(operation, how, address=REMOTE):
    "Put a transfer on the stream; whether the stream was still busy with earlier things when that was done."
    before = torch.cuda.Event()
    before.record(stream)
    here, there, lengths = zip(*WAYS[how])
    near, far = [local.data_ptr() + offset for offset in here], [address + offset for offset in there]
    if how == "one":
        call, blocks = getattr(engine, f"transfer_{operation}_on_cuda"), (near[0], far[0], lengths[0])
    else:
        call, blocks = getattr(engine, f"batch_transfer_{operation}_on_cuda"), (near, far, list(lengths))
    assert call(PEER, *blocks, stream.cuda_stream) is None
    return not before.query()
"""

# Whatever is loaded at first use is loaded before: it would wait for the GPU.
WARM_UP = """
with torch.cuda.stream(stream):
    torch.cuda._sleep(1000)
    local.clone().fill_(1)
    put("read", "one")
    put("write", "batch")
stream.synchronize()
"""


@dataclass
class Ends:
    """Tensors of two processes; the first one runs programs."""

    near: Memory
    far: Memory

    def run(self, program: str, stream: str = "own stream") -> Any:
        """Run a program in the process of `near`, and return its result."""
        names = {"PEER": self.far.peer.name, "REMOTE": self.far.address, "STREAM": stream, "WAYS": WAYS}
        return self.near.peer.ask(
            "execute", LIMIT, engine="main", region=self.near.region, program=BEGIN + program, names=names
        )

    def fill(self, seed: int) -> None:
        fill((self.near, self.far), seed)

    def check(self) -> None:
        check((self.near, self.far))


@pytest.fixture(scope="module", params=("0", "1"), ids=("tcp", "same-host"))
def ends(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Ends]:
    machine.need_torch()
    peers = [machine.start(module_peers, KVFERRY_SAME_HOST=request.param).create() for _ in range(2)]
    both = Ends(*(peer.memory(SIZE, 2, place=gpu()) for peer in peers))
    both.run(WARM_UP)
    yield both
    for peer in peers:
        peer.kill()


streams = pytest.mark.parametrize("stream", ("own stream", "default stream"))
hows = pytest.mark.parametrize("how", WAYS)


@streams
@hows
def test_a_write_takes_the_bytes_as_of_its_turn_on_the_stream(
    ends: Ends, how: str, stream: str, seeds: Iterator[int]
) -> None:
    ends.fill(next(seeds))
    ahead = ends.run(
        f"""
with torch.cuda.stream(stream):
    busy()
    local.fill_(2)
    result = put("write", "{how}")
    local.fill_(3)
stream.synchronize()
""",
        stream,
    )
    assert ahead, "the call waited for what was on the stream before"
    for _, there, length in WAYS[how]:
        ends.far.model[there : there + length] = b"\2" * length
    ends.near.model[:] = b"\3" * SIZE
    ends.check()


@streams
@hows
def test_a_read_is_there_for_what_comes_later_on_the_stream(
    ends: Ends, how: str, stream: str, seeds: Iterator[int]
) -> None:
    ends.fill(next(seeds))
    ahead = ends.run(
        f"""
with torch.cuda.stream(stream):
    busy()
    local.fill_(5)
    result = put("read", "{how}")
    seen = local.clone()
    local.zero_()
    local.copy_(seen)
stream.synchronize()
""",
        stream,
    )
    assert ahead, "the call waited for what was on the stream before"
    ends.near.model[:] = b"\5" * SIZE
    for here, there, length in WAYS[how]:
        ends.near.model[here : here + length] = ends.far.model[there : there + length]
    ends.check()


def test_transfers_on_two_streams_each_keep_their_order(ends: Ends, seeds: Iterator[int]) -> None:
    """Many after the other, half of the memory on each."""
    ends.fill(next(seeds))
    ends.run(
        f"""
part = {SIZE} // 2
both = [stream, torch.cuda.Stream()]
for turn in range(20):
    for number, each in enumerate(both):
        mine = local[number * part : (number + 1) * part]
        with torch.cuda.stream(each):
            torch.cuda._sleep(1_000_000 * (turn * (number + 1) % 5))
            mine.fill_(10 * (number + 1) + turn)
            place = (mine.data_ptr(), REMOTE + number * part)
            engine.transfer_write_on_cuda(PEER, *place, part, each.cuda_stream)
            mine.fill_(99)
            engine.transfer_read_on_cuda(PEER, *place, part, each.cuda_stream)
for each in both:
    each.synchronize()
"""
    )
    for memory in (ends.near, ends.far):
        memory.model[:] = bytes([10 + 19]) * (SIZE // 2) + bytes([20 + 19]) * (SIZE // 2)
    ends.check()


def test_a_failure_does_not_stop_the_stream_and_is_told_once(ends: Ends, seeds: Iterator[int]) -> None:
    ends.fill(next(seeds))
    told = ends.run(
        """
with torch.cuda.stream(stream):
    busy()
    put("write", "one", REMOTE + (1 << 40))
    local.fill_(7)
stream.synchronize()
result = []
for _ in range(2):
    try:
        put("write", "one")
        result.append(False)
    except RuntimeError:
        result.append(True)
    stream.synchronize()
"""
    )
    assert told == [True, False]
    for memory in (ends.near, ends.far):
        memory.model[:] = b"\7" * SIZE
    ends.check()


@pytest.mark.parametrize(
    "call",
    (
        'transfer_write_on_cuda("127.0.0.1:1", local.data_ptr(), REMOTE, 8, stream.cuda_stream)',
        "batch_transfer_write_on_cuda(PEER, [local.data_ptr()], [REMOTE], [8, 8], stream.cuda_stream)",
        "batch_transfer_read_on_cuda(PEER, [local.data_ptr()] * 2, [REMOTE], [8], stream.cuda_stream)",
    ),
    ids=("no peer", "unequal lists", "unequal lists of a read"),
)
def test_what_cannot_be_put_on_a_stream_is_an_error_at_once(ends: Ends, call: str, seeds: Iterator[int]) -> None:
    ends.fill(next(seeds))
    told = ends.run(
        f"""
result = False
try:
    engine.{call}
except RuntimeError:
    result = True
stream.synchronize()
"""
    )
    assert told
    ends.check()


def test_a_stream_that_is_being_captured_is_refused_and_the_capture_goes_on(ends: Ends, seeds: Iterator[int]) -> None:
    ends.fill(next(seeds))
    told, unchanged = ends.run(
        f"""
before, told, graph = local.clone(), "", torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    try:
        handle = torch.cuda.current_stream().cuda_stream
        engine.transfer_write_on_cuda(PEER, local.data_ptr(), REMOTE, {SIZE}, handle)
    except RuntimeError as e:
        told = str(e)
    local.fill_(9)
torch.cuda.synchronize()
result = [told, bool((local == before).all())]
graph.replay()
torch.cuda.synchronize()
"""
    )
    assert "is being captured" in told
    assert unchanged, "what is captured is done only when the graph is replayed"
    ends.near.model[:] = b"\t" * SIZE
    ends.check()


def test_the_calls_are_there_where_there_is_a_gpu() -> None:
    done = run_python(
        """
import mooncake.engine
assert mooncake.engine.SUPPORT_CUDA
for operation in ("write", "read"):
    for prefix in ("", "batch_"):
        assert hasattr(start(), f"{prefix}transfer_{operation}_on_cuda")
""",
        LIMIT,
        **machine.settings(),
    )
    assert done.returncode == 0, done.stderr
