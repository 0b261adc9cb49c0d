"""Transfers in the order of a stream of CUDA, on simulated GPUs of this process."""

from __future__ import annotations

import array
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvferry import simulator
from kvferry.gpu import CUDA, Memory
from mooncake.engine import TransferEngine
from support.ids import shown
from support.inprocess import HOST, run_python
from support.process import until
from support.streams import Stream

SIZE = 1 << 18
ONE = [(0, 0, SIZE)]
MANY = [(i * 4096, SIZE - (i + 1) * 4096, 1 + 63 * i) for i in range(64)]  # offsets here and there, length

hows = pytest.mark.parametrize("blocks", (ONE, MANY), ids=("one", "batch"))


def of(byte: int) -> bytes:
    return bytes([byte]) * SIZE


@dataclass
class Engines:
    """Makes engines, and memory that is registered with them, on two GPUs."""

    cuda: CUDA
    streams: list[Stream] = field(default_factory=list)

    def engine(self) -> TransferEngine:
        made = TransferEngine()
        assert made.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
        return made

    def memory(self, engine: TransferEngine, device: int, byte: int) -> Memory:
        memory = self.cuda.allocate(SIZE, device)
        memory.write(of(byte))
        assert engine.register_memory(memory.address, SIZE) == 0
        return memory

    def stream(self, device: int = 0, default: bool = False) -> Stream:
        made = Stream(self.cuda, device, default)
        self.streams.append(made)
        return made


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    monkeypatch.setenv("KVFERRY_CUDA", simulator.library("cuda"))
    made = Engines(CUDA())
    yield made
    for stream in made.streams:
        stream.close()


class Pair:
    """An engine with memory of the first GPU, all ones, a stream of it, and a peer with the second GPU's, all twos."""

    def __init__(self, engines: Engines, default_stream: bool = False) -> None:
        self.engine, self.far = engines.engine(), engines.engine()
        self.peer = f"{HOST}:{self.far.get_rpc_port()}"
        self.local, self.remote = engines.memory(self.engine, 0, 1), engines.memory(self.far, 1, 2)
        self.stream = engines.stream(0, default_stream)
        self._cuda = engines.cuda

    def put(self, operation: str, blocks: list[tuple[int, int, int]] = ONE, remote: int = 0) -> None:
        """Put a transfer on the stream, with the memory at an address, or the peer's."""
        here, there, lengths = zip(*blocks)
        near = [self.local.address + offset for offset in here]
        far = [(remote or self.remote.address) + offset for offset in there]
        with self._cuda.on(0):
            if len(blocks) == 1:
                call: Any = getattr(self.engine, f"transfer_{operation}_on_cuda")
                assert call(self.peer, near[0], far[0], lengths[0], self.stream.handle) is None
            else:
                call = getattr(self.engine, f"batch_transfer_{operation}_on_cuda")
                assert call(self.peer, near, far, list(lengths), self.stream.handle) is None

    def fail(self, times: int = 1) -> None:
        """Put transfers on the stream that fail, and see the stream come past them."""
        self.stream.hold()
        for _ in range(times):
            self.put("write", remote=self.remote.address + (1 << 40))
        self.stream.wait()


@pytest.fixture(params=(False, True), ids=("own stream", "default stream"))
def pair(request: pytest.FixtureRequest, engines: Engines) -> Pair:
    return Pair(engines, request.param)


@pytest.fixture
def own(engines: Engines) -> Pair:
    """A pair with a stream of its own."""
    return Pair(engines)


@hows
def test_a_write_takes_the_bytes_as_of_its_turn_and_does_not_wait_for_it(
    pair: Pair, blocks: list[tuple[int, int, int]]
) -> None:
    pair.stream.hold()
    pair.stream.put(pair.local, of(3))
    pair.put("write", blocks)
    pair.stream.put(pair.local, of(4))
    assert pair.stream.busy()
    assert pair.remote.read(SIZE) == of(2)
    pair.stream.wait()
    wanted = bytearray(of(2))
    for _, there, length in blocks:
        wanted[there : there + length] = of(3)[:length]
    assert pair.remote.read(SIZE) == wanted
    assert pair.local.read(SIZE) == of(4)


@hows
def test_work_later_on_the_stream_sees_what_a_read_brought(pair: Pair, blocks: list[tuple[int, int, int]]) -> None:
    pair.stream.hold()
    pair.stream.put(pair.local, of(3))
    pair.put("read", blocks)
    seen = pair.stream.get(pair.local)
    pair.stream.put(pair.local, of(4))
    assert pair.stream.busy()
    pair.stream.wait()
    wanted = bytearray(of(3))
    for here, _, length in blocks:
        wanted[here : here + length] = of(2)[:length]
    assert seen() == wanted
    assert pair.local.read(SIZE) == of(4)


def test_the_stream_need_not_be_given_for_the_default_one(engines: Engines) -> None:
    pair = Pair(engines, default_stream=True)
    with engines.cuda.on(0):
        pair.engine.transfer_write_on_cuda(pair.peer, pair.local.address, pair.remote.address, SIZE)
        pair.engine.batch_transfer_read_on_cuda(pair.peer, [pair.local.address], [pair.remote.address], [SIZE])
    pair.stream.wait()
    assert pair.remote.read(SIZE) == of(1)


def test_the_arrays_are_not_needed_after_the_call(own: Pair) -> None:
    near, far, lengths = (array.array("Q", [number]) for number in (own.local.address, own.remote.address, SIZE))
    own.stream.hold()
    own.engine.batch_transfer_write_on_cuda(own.peer, near, far, lengths, own.stream.handle)
    for column in (near, far, lengths):
        column[0] = 0  # the engine was given the arrays themselves
    own.stream.wait()
    assert own.remote.read(SIZE) == of(1)


def test_a_failure_lets_the_stream_go_on_and_is_logged_and_raised_once(
    pair: Pair, capfd: pytest.CaptureFixture[str]
) -> None:
    pair.put("write", remote=pair.remote.address + (1 << 40))
    pair.stream.put(pair.local, of(5))
    pair.stream.wait()
    assert pair.local.read(SIZE) == of(5)
    logged: list[str] = []

    def is_logged() -> bool:
        # capfd has put a file in the place of standard error. readouterr() loses what is written while it empties that.
        text = os.pread(2, 1 << 20, 0).decode()
        logged[:] = [line for line in text.splitlines(True) if "order of a stream failed" in line and line[-1] == "\n"]
        return bool(logged)

    until(is_logged, 30, "the failure is logged")
    assert len(logged) == 1 and pair.peer in logged[0], logged
    with pytest.raises(RuntimeError, match=f"(?s)earlier transfer.*{pair.peer}"):
        pair.put("write")
    pair.stream.wait()
    assert pair.remote.read(SIZE) == of(2), "nothing was queued by the call that told of the failure"
    pair.put("write")
    pair.stream.wait()
    assert pair.remote.read(SIZE) == of(5)


def test_one_error_has_several_failures(own: Pair) -> None:
    own.fail(times=3)
    with pytest.raises(RuntimeError, match=r"and so did 2 others"):
        own.put("read")
    own.put("read")


def test_empty_lists_tell_of_a_failure_and_do_nothing_else(own: Pair) -> None:
    no_stream = 0x1234  # which would be refused
    own.engine.batch_transfer_write_on_cuda(own.peer, [], [], [], no_stream)
    own.fail()
    with pytest.raises(RuntimeError, match="earlier transfer"):
        own.engine.batch_transfer_read_on_cuda(own.peer, [], [], [], no_stream)
    own.engine.batch_transfer_read_on_cuda(own.peer, [], [], [], no_stream)


def test_the_engine_that_had_a_failure_raises_it(engines: Engines, own: Pair) -> None:
    own.fail()
    other = Pair(engines)
    other.put("write")
    other.stream.wait()
    assert other.remote.read(SIZE) == of(1)
    with pytest.raises(RuntimeError):
        own.put("write")


@pytest.mark.parametrize("operation", ("write", "read"))
@pytest.mark.parametrize("lengths", (([0], [], [8]), ([0], [0], [8, 8]), ([0, 0], [0], [8])), ids=str)
def test_unequal_lists_are_an_error(own: Pair, operation: str, lengths: tuple[list[int], ...]) -> None:
    with pytest.raises(RuntimeError, match="length"):
        getattr(own.engine, f"batch_transfer_{operation}_on_cuda")(own.peer, *lengths, own.stream.handle)
    assert not own.stream.busy()


def test_an_engine_that_was_not_initialized_says_so(engines: Engines, fresh_engine: TransferEngine) -> None:
    for operation in ("write", "read"):
        with pytest.raises(RuntimeError, match="not initialized"):
            getattr(fresh_engine, f"transfer_{operation}_on_cuda")("127.0.0.1:1", 1, 1, 1, 0)
        with pytest.raises(RuntimeError, match="not initialized"):
            getattr(fresh_engine, f"batch_transfer_{operation}_on_cuda")("127.0.0.1:1", [1], [1], [1], 0)


@pytest.mark.parametrize("peer", ("127.0.0.1:1", "", "a\0b"), ids=shown)
def test_a_peer_that_cannot_be_opened_is_an_error_at_once(own: Pair, peer: str) -> None:
    with pytest.raises(RuntimeError):
        own.engine.transfer_write_on_cuda(peer, own.local.address, own.remote.address, SIZE, own.stream.handle)


@pytest.fixture
def misuse(engines: Engines) -> Iterator[None]:
    """What the simulator would tell of at the end of the process is forgotten."""
    yield
    engines.cuda.library.kvferry_sim_reset_counters()


def test_a_handle_that_is_no_stream_is_an_error_at_once(own: Pair, misuse: None) -> None:
    with pytest.raises(RuntimeError, match=r"cuStreamGetCtx\(0x1234\)"):
        own.engine.transfer_write_on_cuda(own.peer, own.local.address, own.remote.address, SIZE, 0x1234)


def test_a_thread_without_a_context_has_no_default_stream(own: Pair, misuse: None) -> None:
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_CONTEXT"):
        own.engine.transfer_write_on_cuda(own.peer, own.local.address, own.remote.address, SIZE)


@pytest.mark.parametrize("position", range(5))
def test_an_argument_of_another_type_is_a_type_error(own: Pair, position: int) -> None:
    one: list[Any] = [own.peer, own.local.address, own.remote.address, SIZE, own.stream.handle]
    many: list[Any] = [own.peer, [own.local.address], [own.remote.address], [SIZE], own.stream.handle]
    for operation in ("write", "read"):
        for name, arguments in ((f"transfer_{operation}", one), (f"batch_transfer_{operation}", many)):
            wrong = [*arguments[:position], 1.5, *arguments[position + 1 :]]
            with pytest.raises(TypeError):
                getattr(own.engine, f"{name}_on_cuda")(*wrong)
    assert not own.stream.busy()


def test_a_stream_goes_on_when_the_engine_has_ended_meanwhile(own: Pair) -> None:
    own.stream.hold()
    own.put("write")
    own.stream.put(own.local, of(6))
    del own.engine
    gc.collect()
    own.stream.wait()
    assert own.remote.read(SIZE) == of(2), "the engine has ended before"
    assert own.local.read(SIZE) == of(6)


def test_engines_and_streams_do_not_wait_for_each_other(engines: Engines) -> None:
    """One is held all the time; on the others transfers follow each other in both directions."""
    pairs = [Pair(engines) for _ in range(4)]
    held = pairs.pop()
    held.stream.hold()
    held.put("write")
    for pair in pairs[1:]:
        pair.engine = pairs[0].engine
        assert pair.engine.register_memory(pair.local.address, SIZE) == 0
    for turn in range(10):
        for number, pair in enumerate(pairs):
            pair.stream.put(pair.local, of(20 * number + 10 + turn))
            pair.put("write", MANY if turn % 2 else ONE)
            pair.put("write")
            pair.stream.put(pair.local, of(99))
            pair.put("read")
    for number, pair in enumerate(pairs):
        pair.stream.wait()
        assert pair.local.read(SIZE) == pair.remote.read(SIZE) == of(20 * number + 19)
    assert held.stream.busy()
    assert held.remote.read(SIZE) == of(2)


STUCK = """
import atexit, gc
from kvferry.gpu import CUDA
from support import runtimes
from support.process import until
from support.streams import Stream

peer, cuda, engine = StuckPeer(), CUDA(), start()
atexit.register(peer.kill)
memory, stream = cuda.allocate(1 << 20), Stream(cuda)
assert engine.register_memory(memory.address, memory.size) == 0
copies = lambda: runtimes.Simulator("cuda").report()["copies"]["d2h"]

def put():
    engine.transfer_write_on_cuda(peer.name, memory.address, peer.address, memory.size, stream.handle)

put()
stream.wait()
before = copies()
peer.stop()
put()
while copies() == before:  # until it is under way
    time.sleep(0.001)
assert stream.busy()
"""


@pytest.mark.parametrize(
    "program",
    (
        "del engine; gc.collect(); stream.close()",
        """
stream.wait()
try:
    put()
except RuntimeError as e:
    assert "earlier transfer" in str(e) and "within 5s" in str(e), e
else:
    raise AssertionError
stream.close()
""",
    ),
    ids=("the engine ends", "time is over"),
)
def test_a_stream_goes_on_when_a_transfer_that_is_under_way_is_given_up(program: str) -> None:
    cuda = simulator.library("cuda")
    done = run_python(STUCK + program, KVFERRY_CUDA=cuda, KVFERRY_TESTS_CUDA=cuda, MC_TRANSFER_TIMEOUT="5")
    assert done.returncode == 0, done.stderr


def test_an_inherited_engine_in_a_forked_child_raises_an_error_with_the_remedy() -> None:
    done = run_python(
        """
engine = start()
def refuses():
    for operation in ("write", "read"):
        for call, arguments in (("transfer", ("x", 1, 1, 1)), ("batch_transfer", ("x", [1], [1], [1]))):
            try:
                getattr(engine, f"{call}_{operation}_on_cuda")(*arguments)
            except RuntimeError as e:
                assert type(e).__name__ == "LibraryError" and "make a new TransferEngine()" in str(e), e
            else:
                raise AssertionError(call)
assert hasattr(engine, "transfer_write_on_cuda")
assert child(refuses) == 0
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
        KVFERRY_CUDA=simulator.library("cuda"),
    )
    assert (done.returncode, done.stderr) == (0, "")
