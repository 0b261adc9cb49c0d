"""kvferry demo: KV cache moves between two processes over TCP, and every byte of it is checked.

For each pair of places, host to host, NPU to host and NPU to NPU, or, with a GPU, host to host, NPU to GPU and GPU to
GPU:

1. decode, a process of its own, makes a KV cache, registers it, and tells its name and address;
2. prefill, the process that was started, fills a cache of the same shape and takes a digest of each layer;
3. prefill writes all blocks, a layer's in a batch, to slots that are scattered over decode's cache;
4. decode takes the digests of what has arrived, and prefill compares them with its own;
5. prefill wipes its cache, reads all blocks back, and compares again.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Callable, NamedTuple, Union

from kvferry import __version__, gpu, npu, simulator
from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
from kvferry._device import DeviceError, Memory, Runtime
from kvferry._engine import Engine, EngineError
from kvferry._ffi import u64_array
from kvferry._library import LibraryError
from kvferry._memory import Mapping
from kvferry._options import positive
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL

ANSWER_TIME = 60.0  # seconds until a process that does not answer is given up
TRANSFER_TIME = 30.0  # seconds until a batch is given up
STEP = 1 << 20  # bytes that a cache is filled with at once

DIGESTS = "digests"  # what prefill asks decode for, other than a place

Table = list[int]  # where each block of a sequence lies: its slot in every layer's K and in every layer's V


class DemoError(Exception):
    """The demo cannot go on; the text is a sentence."""


class Shape(NamedTuple):
    """A KV cache: for each layer K and V, each of so many blocks."""

    layers: int
    blocks: int
    block_size: int  # bytes

    @property
    def bytes(self) -> int:
        return self.layers * 2 * self.blocks * self.block_size

    def offsets(self, layer: int, table: Table) -> Iterator[int]:
        """Where a layer's blocks lie in the cache, those of K and then those of V, in the order of the sequence."""
        for half in (layer * 2, layer * 2 + 1):
            for slot in table:
                yield (half * self.blocks + slot) * self.block_size

    def __str__(self) -> str:
        return f"{self.layers} layers x K and V x {self.blocks} blocks of {size_text(self.block_size)}"


class HostMemory:
    """Host memory, with the methods of a device's."""

    location = "*"

    def __init__(self, size: int) -> None:
        self._mapping = Mapping(size)
        self.address = self._mapping.address

    def write(self, data: bytes, offset: int = 0) -> None:
        self._mapping.buffer[offset : offset + len(data)] = data

    def read(self, length: int, offset: int = 0) -> bytes:
        return self._mapping.buffer[offset : offset + length]


def allocate(place: str, size: int) -> Union[HostMemory, Memory]:
    """Memory in a place: "host", or a device as "npu:0" or "cuda:0"."""
    location, _, device = place.partition(":")
    try:
        return HostMemory(size) if place == "host" else KINDS[location].runtime().allocate(size, int(device))
    except (DeviceError, OSError, OverflowError, ValueError) as e:
        raise DemoError(f"there are no {size_text(size)} of memory for the cache on {place}: {e}") from e


class Cache:
    """Memory in the shape of a KV cache, its blocks in random slots."""

    def __init__(self, shape: Shape, place: str) -> None:
        self.shape = shape
        self.table: Table = random.sample(range(shape.blocks), shape.blocks)
        self.memory = allocate(place, shape.bytes)

    def fill(self) -> None:
        """Fill it with random bytes."""
        self._write(os.urandom)

    def wipe(self) -> None:
        self._write(bytes)

    def _write(self, data: Callable[[int], bytes]) -> None:
        for start in range(0, self.shape.bytes, STEP):
            self.memory.write(data(min(STEP, self.shape.bytes - start)), start)

    def digests(self) -> list[bytes]:
        """One digest of each layer: of its blocks in the order of the sequence, wherever they lie."""
        return [self._digest(layer) for layer in range(self.shape.layers)]

    def _digest(self, layer: int) -> bytes:
        size = self.shape.bytes // self.shape.layers
        digest = hashlib.blake2b(digest_size=16)
        with memoryview(self.memory.read(size, layer * size)) as view:
            for offset in self.shape.offsets(layer, self.table):
                start = offset - layer * size
                digest.update(view[start : start + self.shape.block_size])
        return digest.digest()


class Node:
    """An engine and the cache that is registered with it."""

    def __init__(self, host: str, shape: Shape, place: str) -> None:
        self.cache = Cache(shape, place)
        memory = self.cache.memory
        try:
            self.engine = Engine(host, "P2PHANDSHAKE", "tcp", memory)
        except (EngineError, LibraryError, ValueError) as e:
            raise DemoError(f"no engine can be started on {host}: {e}") from e
        if self.engine.register(memory.address, shape.bytes, memory.location) != 0:
            raise DemoError(f"the cache on {place} cannot be registered: {self.engine.last_error()}")

    def close(self) -> None:
        self.engine.close()


class Decode(NamedTuple):
    """What prefill is told about decode."""

    name: str
    address: int
    table: Table


def decode(connection: Connection, host: str, shape: Shape) -> None:
    """The decode process: serve a cache in each place that is asked for, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # prefill gets it too, and ends this process
    try:
        place = connection.recv()
        while True:
            place = serve(connection, Node(host, shape, place))
    except DemoError as e:
        connection.send(e)
    except (EOFError, OSError):
        pass  # prefill has ended


def serve(connection: Connection, node: Node) -> str:
    """Tell where the cache is, and as often as asked what is in it. Returns the next place that is asked for."""
    node.cache.wipe()  # so that its pages are there, as a cache's in use
    connection.send(Decode(node.engine.name(), node.cache.memory.address, node.cache.table))
    while (asked := connection.recv()) == DIGESTS:
        connection.send(node.cache.digests())
    node.close()
    return str(asked)


class Prefill(Node):
    """The side that moves the bytes."""

    def __init__(self, host: str, shape: Shape, place: str, batch: int, peer: Decode) -> None:
        super().__init__(host, shape, place)
        self._batch = batch
        self._peer = peer
        self._segment = self.engine.segment(peer.name, TRANSFER_TIME)
        if self._segment < 0:
            raise DemoError(f"decode's memory {peer.name} cannot be opened: {self.engine.last_error()}")

    def move(self, opcode: int) -> list[float]:
        """Write or read every block; the seconds that each batch took."""
        blocks = list(self._blocks())
        return [self._move_batch(opcode, blocks[i : i + self._batch]) for i in range(0, len(blocks), self._batch)]

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """The local and the remote address of every block."""
        shape, here, there = self.cache.shape, self.cache.memory.address, self._peer.address
        for layer in range(shape.layers):
            pairs = zip(shape.offsets(layer, self.cache.table), shape.offsets(layer, self._peer.table))
            yield from ((here + local, there + remote) for local, remote in pairs)

    def _move_batch(self, opcode: int, blocks: list[tuple[int, int]]) -> float:
        local = u64_array([b[0] for b in blocks], "local").address
        remote = u64_array([b[1] for b in blocks], "remote").address
        lengths = u64_array([self.cache.shape.block_size] * len(blocks), "lengths").address
        start = time.perf_counter()
        code = self.engine.transfer(opcode, self._segment, local, remote, lengths, len(blocks), None, TRANSFER_TIME)
        if code != 0:
            verb = "writing to" if opcode == OPCODE_WRITE else "reading from"
            raise DemoError(f"{verb} decode failed: {self.engine.last_error()}")
        return time.perf_counter() - start


def run(arguments: argparse.Namespace) -> int:
    """The command: 0 when every byte was right, 1 when one was not or something failed."""
    shape = Shape(arguments.layers, arguments.blocks, arguments.block_size)
    os.environ["KVFERRY_SAME_HOST"] = "0"  # the processes stand for two hosts, and use TCP
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=decode, args=(there, arguments.host, shape), name="decode", daemon=True)
    try:
        npus, gpus = find_npus(), find_gpus(arguments.decode)
        process.start()
        there.close()
        move_and_check(arguments.host, shape, arguments.batch or 2 * shape.blocks, npus, gpus, here, process)
    except DemoError as e:
        print(f"kvferry demo failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kvferry demo was interrupted", file=sys.stderr)
        return 130
    finally:
        here.close()
        end(process)
    return 0


class Devices(NamedTuple):
    """Devices of a kind, NPUs or GPUs, that this process and those that it starts use."""

    location: str  # "npu" or "cuda"
    number: int
    simulated: bool
    told: str  # the sentence about them

    @staticmethod
    def of(runtime: Runtime, why: str = "") -> Devices:
        """Those of a library. why says what is in the way of real ones."""
        number, kind = runtime.devices(), KINDS[runtime.location].name
        if runtime.simulated:
            told = f"the {kind} is simulated{f': {why}' if why else f', by {runtime.path}'}"
        else:
            told = f"the {kind} is real, one of {number}, by way of {runtime.path}"
        return Devices(runtime.location, number, runtime.simulated, told)

    def place(self, other: bool = False) -> str:
        """One of them, or another one where there are two."""
        return f"{self.location}:{min(int(other), self.number - 1)}"


class Kind(NamedTuple):
    """A kind of device."""

    name: str
    variable: str  # that names the library
    runtime: Callable[[], Runtime]


KINDS = {"npu": Kind("NPU", npu.VARIABLE, AscendCL), "cuda": Kind("GPU", gpu.VARIABLE, CUDA)}


def find_npus() -> Devices:
    """NPUs, simulated ones where the machine has none. DemoError when there is nothing."""
    return find("npu", simulate=True)


def find_gpus(decode: str) -> Devices | None:
    """The GPUs for decode's cache, if it is to be there: those of the machine, or simulated ones where "gpu" is asked
    for. DemoError when there are to be some and there is nothing."""
    if decode == "host":
        return None
    try:
        return find("cuda", simulate=decode == "gpu")
    except NoneThere:
        return None


class NoneThere(DemoError):
    """The machine has no device of a kind."""


def find(location: str, simulate: bool) -> Devices:
    """Devices of the library that the variable of their kind names, or of the machine. Where it has none there are
    simulated ones, if that is wanted: the variable is set to what simulates them."""
    kind = KINDS[location]
    try:
        if os.environ.get(kind.variable) or (absent := why_none(kind)) is None:
            return Devices.of(kind.runtime())
        if not simulate:
            raise NoneThere(absent)
        os.environ[kind.variable] = simulator.library(location)
        return Devices.of(kind.runtime(), absent)
    except (DeviceError, LibraryError) as e:
        raise DemoError(str(e)) from e


def why_none(kind: Kind) -> str | None:
    """None on a machine that has such a device."""
    try:
        runtime = kind.runtime()
        return None if runtime.devices() else f"{runtime.title} finds no {kind.name}"
    except DeviceError as e:
        return str(e)


def move_and_check(
    host: str,
    shape: Shape,
    batch: int,
    npus: Devices,
    gpus: Devices | None,
    connection: Connection,
    process: BaseProcess,
) -> None:
    """All pairs of places, with what is printed about them."""
    print(f"kvferry {__version__}: a KV cache of {shape}, {size_text(shape.bytes)} in all")
    for devices in filter(None, (npus, gpus)):
        print(devices.told)
    print(f"prefill (process {os.getpid()}) writes it over TCP to decode (process {process.pid}), {batch} scattered")
    print("blocks at a time, and reads it back\n")
    print("prefill   decode             bytes   blocks  batches    time    GB/s  p50/batch  p99/batch", flush=True)
    for here, there in pairs(npus, gpus):
        prefill = Prefill(host, shape, here, batch, ask(connection, process, there))
        written, read = both_ways(prefill, connection, process)
        prefill.close()
        print(table_row(f"{here:6} -> {there:6} write", shape, written))
        print(table_row(f"{here:6} <- {there:6} read ", shape, read), flush=True)
    print(f"\nevery byte checked: the digests of all {shape.layers} layers agree on both sides, in each row")


def pairs(npus: Devices, gpus: Devices | None) -> list[tuple[str, str]]:
    """Where the caches of prefill and decode are, one pair after the other."""
    if gpus is None:
        return [("host", "host"), (npus.place(), "host"), (npus.place(), npus.place(other=True))]
    return [("host", "host"), (npus.place(), gpus.place()), (gpus.place(), gpus.place(other=True))]


def both_ways(prefill: Prefill, connection: Connection, process: BaseProcess) -> tuple[list[float], list[float]]:
    """Steps 2 to 5: the seconds of each batch, written and read."""
    prefill.cache.fill()
    sent = prefill.cache.digests()
    written = prefill.move(OPCODE_WRITE)
    compare(sent, ask(connection, process, DIGESTS), "decode has")
    prefill.cache.wipe()
    read = prefill.move(OPCODE_READ)
    compare(sent, prefill.cache.digests(), "prefill has read back")
    return written, read


def ask(connection: Connection, process: BaseProcess, what: str) -> Any:
    """What decode answers."""
    try:
        connection.send(what)
        if not connection.poll(ANSWER_TIME):
            raise DemoError(f"the decode process did not answer within {ANSWER_TIME:.0f} s")
        received = connection.recv()
    except (EOFError, OSError):
        process.join(1)
        raise DemoError(f"the decode process ended too early, with exit code {process.exitcode}") from None
    if isinstance(received, DemoError):
        raise received
    return received


def compare(sent: list[bytes], arrived: list[bytes], who: str) -> None:
    wrong = [str(layer) for layer, (a, b) in enumerate(zip(sent, arrived)) if a != b]
    if wrong or len(sent) != len(arrived):
        raise DemoError(f"what {who} differs from what prefill sent, in layers {', '.join(wrong)}")


def end(process: BaseProcess) -> None:
    """Wait for decode, which ends when its connection is closed; kill it if it does not."""
    if process.pid is None:
        return  # it was never started
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def table_row(name: str, shape: Shape, times: list[float]) -> str:
    total, ordered = sum(times), sorted(times)
    p50, p99 = (ordered[int(p * (len(ordered) - 1))] * 1e3 for p in (0.5, 0.99))
    blocks = shape.layers * 2 * shape.blocks
    return (
        f"{name} {shape.bytes:11,} {blocks:8,} {len(times):8,} {total:5.2f} s {shape.bytes / total / 1e9:7.2f}"
        f" {p50:7.2f} ms {p99:7.2f} ms"
    )


def size_text(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def add_command(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser("demo", help="move KV cache between two processes and check every byte")
    option: Callable[..., Any] = parser.add_argument
    option("--layers", type=positive, default=32, metavar="N", help="layers of the model (%(default)s)")
    option("--blocks", type=positive, default=256, metavar="N", help="blocks of each layer's K and V (%(default)s)")
    option("--block-size", type=positive, default="16K", metavar="BYTES", help="bytes of a block (%(default)s)")
    option("--batch", type=positive, metavar="N", help="blocks in one call (those of a layer)")
    option(
        "--decode",
        choices=("auto", "gpu", "host"),
        default="auto",
        help="where decode keeps its cache: in a GPU, which is simulated where the machine has none; in host and NPU"
        " memory; or in a GPU where there is one (%(default)s)",
    )
    option("--host", default="127.0.0.1", help="address of this machine to use (%(default)s)")
    parser.set_defaults(run=run)
