"""kvferry demo: KV cache moves between two processes over TCP, and every byte of it is checked.

1. decode, a process of its own, maps a KV cache, registers it, and tells its name and address;
2. prefill, the process that was started, fills a cache of the same shape and takes a digest of each layer;
3. prefill writes all blocks, in batches, to slots that are scattered over decode's cache;
4. decode takes the digests of what has arrived, and prefill compares them with its own;
5. prefill wipes its cache, reads all blocks back, and compares again.
"""

from __future__ import annotations

import argparse
import ctypes
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
from typing import Any, Callable, NamedTuple

from kvferry import __version__
from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
from kvferry._engine import Engine, EngineError
from kvferry._ffi import u64_array
from kvferry._library import LibraryError
from kvferry._memory import Mapping

ANSWER_TIME = 60.0  # seconds until a process that does not answer is given up
TRANSFER_TIME = 30.0  # seconds until a batch is given up

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


class Cache:
    """Memory of this process in the shape of a KV cache, its blocks in random slots."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.table: Table = random.sample(range(shape.blocks), shape.blocks)
        try:
            self.memory = Mapping(shape.bytes)
        except (OSError, OverflowError, ValueError) as e:
            raise DemoError(f"there are no {size_text(shape.bytes)} of memory for the cache: {e}") from e

    def fill(self) -> None:
        """Fill it with random bytes."""
        step = 1 << 20
        for start in range(0, self.shape.bytes, step):
            end = min(start + step, self.shape.bytes)
            self.memory.buffer[start:end] = os.urandom(end - start)

    def wipe(self) -> None:
        ctypes.memset(self.memory.address, 0, self.shape.bytes)

    def digests(self) -> list[bytes]:
        """One digest of each layer: of its blocks in the order of the sequence, wherever they lie."""
        return [self._digest(layer) for layer in range(self.shape.layers)]

    def _digest(self, layer: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        with memoryview(self.memory.buffer) as view:
            for offset in self.shape.offsets(layer, self.table):
                digest.update(view[offset : offset + self.shape.block_size])
        return digest.digest()


class Decode(NamedTuple):
    """What prefill is told about decode."""

    name: str
    address: int
    table: Table
    pid: int


def decode(connection: Connection, host: str, shape: Shape) -> None:
    """The decode process: serve its cache, and its digests when asked, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # prefill gets it too, and ends this process
    try:
        cache = Cache(shape)
        cache.wipe()  # so that its pages are there, as a cache's in use
        engine = start_engine(host, cache)
        if engine.register(cache.memory.address, shape.bytes) != 0:
            raise DemoError(f"decode's cache cannot be registered: {engine.last_error()}")
        connection.send(Decode(engine.name(), cache.memory.address, cache.table, os.getpid()))
        while connection.recv() == "digests":
            connection.send(cache.digests())
    except DemoError as e:
        connection.send(e)
    except (EOFError, OSError):
        pass  # prefill has ended


def start_engine(host: str, cache: Cache) -> Engine:
    try:
        return Engine(host, "P2PHANDSHAKE", "tcp", cache.memory)
    except (EngineError, LibraryError, ValueError) as e:
        raise DemoError(f"no engine can be started on {host}: {e}") from e


class Prefill:
    """The process that moves the bytes."""

    def __init__(self, host: str, shape: Shape, batch: int, peer: Decode) -> None:
        self.cache = Cache(shape)
        self._engine = start_engine(host, self.cache)
        self._batch = batch
        self._peer = peer
        self._segment = self._engine.segment(peer.name, TRANSFER_TIME)
        if self._segment < 0:
            raise DemoError(f"decode's memory {peer.name} cannot be opened: {self._engine.last_error()}")

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
        code = self._engine.transfer(opcode, self._segment, local, remote, lengths, len(blocks), None, TRANSFER_TIME)
        if code != 0:
            verb = "writing to" if opcode == OPCODE_WRITE else "reading from"
            raise DemoError(f"{verb} decode failed: {self._engine.last_error()}")
        return time.perf_counter() - start

    def close(self) -> None:
        self._engine.close()


def run(arguments: argparse.Namespace) -> int:
    """The command: 0 when every byte was right, 1 when one was not or something failed."""
    shape = Shape(arguments.layers, arguments.blocks, arguments.block_size)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=decode, args=(there, arguments.host, shape), name="decode", daemon=True)
    try:
        process.start()
        there.close()
        move_and_check(arguments.host, shape, arguments.batch, here, process)
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


def move_and_check(host: str, shape: Shape, batch: int, connection: Connection, process: BaseProcess) -> None:
    """Steps 2 to 5, with what is printed about them."""
    print(f"kvferry {__version__}: a KV cache of {shape}, {size_text(shape.bytes)} in all", flush=True)
    peer: Decode = answer(connection, process)
    print(f"decode  (process {peer.pid}) has registered it at {peer.address:#x}, as {peer.name}", flush=True)
    prefill = Prefill(host, shape, batch, peer)
    prefill.cache.fill()
    sent = prefill.cache.digests()
    print(
        f"prefill (process {os.getpid()}) writes it over TCP, {batch} scattered blocks at a time, and reads it back\n"
    )

    written = prefill.move(OPCODE_WRITE)
    connection.send("digests")
    compare(sent, answer(connection, process), "decode has")
    prefill.cache.wipe()
    read = prefill.move(OPCODE_READ)
    compare(sent, prefill.cache.digests(), "prefill has read back")
    prefill.close()

    print("            bytes   blocks  batches    time    GB/s  p50/batch  p99/batch")
    print(table_row("write", shape, written))
    print(table_row("read", shape, read))
    print(f"\nevery byte checked: the digests of all {shape.layers} layers agree on both sides, both ways")


def answer(connection: Connection, process: BaseProcess) -> Any:
    """What decode sends next."""
    if not connection.poll(ANSWER_TIME):
        raise DemoError(f"the decode process did not answer within {ANSWER_TIME:.0f} s")
    try:
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
        f"{name:5} {shape.bytes:11,} {blocks:8,} {len(times):8,} {total:5.2f} s {shape.bytes / total / 1e9:7.2f}"
        f" {p50:7.2f} ms {p99:7.2f} ms"
    )


def size_text(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def positive(text: str) -> int:
    """An option's value: a number, perhaps with K or M after it."""
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:].upper(), 1)
    number = int(text[:-1] if scale > 1 else text) * scale
    if number < 1:
        raise ValueError(text)
    return number


def add_command(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser("demo", help="move KV cache between two processes and check every byte")
    option: Callable[..., Any] = parser.add_argument
    option("--layers", type=positive, default=32, metavar="N", help="layers of the model (%(default)s)")
    option("--blocks", type=positive, default=256, metavar="N", help="blocks of each layer's K and V (%(default)s)")
    option("--block-size", type=positive, default="16K", metavar="BYTES", help="bytes of a block (%(default)s)")
    option("--batch", type=positive, default=64, metavar="N", help="blocks in one call (%(default)s)")
    option("--host", default="127.0.0.1", help="address of this machine to use (%(default)s)")
    parser.set_defaults(run=run)
