"""The two sides of the demo: decode, which is a process of its own, and prefill."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from kvferry import Layout, plan
from kvferry._bindings import OPCODE_WRITE
from kvferry._engine import Engine
from kvferry._errors import EngineError
from kvferry._ffi import u64_array
from kvferry._library import LibraryError, load
from kvferry.demo.cache import Cache, Shape, Table
from kvferry.demo.devices import DemoError
from kvferry.demo.layouts import LongCache, Tokens, short_blocks

ANSWER_TIME = 60.0  # seconds that the decode process may take to answer
END_TIME = 5.0  # seconds that it may take to end
TRANSFER_TIME = 30.0  # seconds that a batch may take

DIGESTS = "digests"  # a request to decode; any other one is a place for a new cache


class Node:
    """An engine and the cache that is registered with it."""

    def __init__(self, host: str, cache: Cache, place: str) -> None:
        self.cache = cache
        memory = cache.memory
        try:
            self.engine = Engine(host, "P2PHANDSHAKE", "tcp", memory)
        except (EngineError, LibraryError, ValueError) as e:
            raise DemoError(f"no engine can be started on {host}: {e}") from e
        if self.engine.register(memory.address, cache.shape.bytes, memory.location) != 0:
            raise DemoError(f"the cache on {place} cannot be registered: {self.engine.last_error()}")

    def close(self) -> None:
        """End the engine."""
        self.engine.close()


class Decode(NamedTuple):
    """What prefill has to know about decode."""

    name: str
    address: int
    table: Table
    tokens: Tokens | None


def decode(connection: Connection, host: str, shape: Shape) -> None:
    """The decode process: serve a cache in each place that prefill asks for, until prefill closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # prefill gets it too, and ends this process
    try:
        place = connection.recv()
        while True:
            place = _serve(connection, Node(host, Cache(shape, place), place))
    except DemoError as e:
        connection.send(e)
    except (EOFError, OSError):
        pass  # prefill has ended


def _serve(connection: Connection, node: Node) -> str:
    """Send where the cache is, and the cache's digests as often as prefill asks. Returns the next place."""
    node.cache.wipe()  # so that its pages are there, as those of a cache in use
    cache = node.cache
    connection.send(Decode(node.engine.name(), cache.memory.address, cache.table, short_blocks(cache)))
    while (asked := connection.recv()) == DIGESTS:
        connection.send(node.cache.digests())
    node.close()
    return str(asked)


class DecodeProcess:
    """The decode process, as prefill uses it."""

    def __init__(self, host: str, shape: Shape) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, self._far_end = spawn.Pipe()
        arguments = self._far_end, host, shape
        self._process = spawn.Process(target=decode, args=arguments, name="decode", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def start(self) -> None:
        self._process.start()
        self._far_end.close()

    def serve(self, place: str) -> Decode:
        """Have decode make a cache in a place."""
        described: Decode = self._ask(place)
        return described

    def digests(self) -> list[bytes]:
        """The digests of decode's cache."""
        digests: list[bytes] = self._ask(DIGESTS)
        return digests

    def _ask(self, request: str) -> Any:
        """What decode answers. DemoError when it answers with one, too late, or not at all."""
        try:
            self._connection.send(request)
            if not self._connection.poll(ANSWER_TIME):
                raise DemoError(f"the decode process did not answer within {ANSWER_TIME:.0f} s")
            received = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise DemoError(f"the decode process ended too early, with exit code {self._process.exitcode}") from None
        if isinstance(received, DemoError):
            raise received
        return received

    def kill(self) -> None:
        """End decode now, whatever it does. It may fill or read a large cache before it sees that prefill has ended."""
        if self._process.pid is not None:
            self._process.kill()

    def end(self) -> None:
        """Close the connection, and wait until decode has ended. Kill it if it does not end."""
        self._connection.close()
        if self._process.pid is None:
            return  # it was never started
        self._process.join(END_TIME)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Prefill(Node):
    """The side that moves the bytes."""

    def __init__(self, host: str, cache: Cache, place: str, batch: int, peer: Decode) -> None:
        super().__init__(host, cache, place)
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
        self._check(code, opcode)
        return time.perf_counter() - start

    def _check(self, code: int, opcode: int) -> None:
        if code != 0:
            verb = "writing to" if opcode == OPCODE_WRITE else "reading from"
            raise DemoError(f"{verb} decode failed: {self.engine.last_error()}")


class ReshapingPrefill(Prefill):
    """Prefill with a layout of its own, which moves the cache a layer at a time, each by a plan."""

    def __init__(self, host: str, cache: LongCache, place: str, peer: Decode, tokens: Tokens) -> None:
        super().__init__(host, cache, place, 1, peer)
        self._long = cache
        self._tokens = tokens

    def move(self, opcode: int) -> list[float]:
        return [self._move_layer(opcode, layer) for layer in range(self.cache.shape.layers)]

    def _move_layer(self, opcode: int, layer: int) -> float:
        start = time.perf_counter()
        mine = self._long.layout(layer).blocks(self.cache.table)
        theirs = Layout.from_json(self._tokens.layout).blocks(self._tokens.table)
        source, destination = (mine, theirs) if opcode == OPCODE_WRITE else (theirs, mine)
        what = plan(source, destination, self._tokens.number, partial=True)  # of the layers, only this one
        moved = [(self._segment, 0)]
        self._check(self.engine.transfer_plan(opcode, what.handle(load()), moved, TRANSFER_TIME), opcode)
        return time.perf_counter() - start
