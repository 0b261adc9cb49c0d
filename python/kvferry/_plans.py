"""Plans: what has to move between two or more layouts, and moving it. docs/layouts.md has examples.

The native library computes a plan and expands it into requests. Nothing here takes time for each range that moves.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from ctypes import byref
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from kvferry._bindings import (
    KVFERRY_ERR_TIMED_OUT,
    OPCODE_READ,
    OPCODE_WRITE,
    Functions,
    kvferry_place_t,
    kvferry_plan_transfer_t,
)
from kvferry._engine import Engine
from kvferry._errors import UNREACHABLE, PeerUnreachable, TimedOut, TransferError
from kvferry._ffi import flag, integer, last_error, u64
from kvferry._layouts import Place
from kvferry._library import load
from kvferry._managed import OfProcess
from kvferry._offers import Offered
from kvferry._waiting import and_size, given_up, limit, setting

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from kvferry import _native
    from mooncake.engine import TransferEngine

    AnyEngine = Union[_native.Engine, TransferEngine, Engine]

GIB = 1 << 30
Side = Union[Place, Offered]
Places = Union[Side, Sequence[Side]]
Peers = Union[str, Sequence[str]]


class Moved(NamedTuple):
    """What moves from one source to one destination."""

    source: int  # index into the sources
    destination: int  # index into the destinations
    ranges: int  # each contiguous on both sides
    bytes: int


class Plan(OfProcess):
    """What has to move. A plan does not change; any thread may use it, as often as it likes."""

    _instead = ": send the layouts, and make it again"

    def __init__(self, sources: Sequence[Place], destinations: Sequence[Place], tokens: int, partial: bool) -> None:
        self._functions = functions = load()
        self._sides = {"source": len(sources), "destination": len(destinations)}
        lists = self._array(sources), len(sources), self._array(destinations), len(destinations)
        handle = functions.kvferry_plan_make(*lists, u64(tokens, "tokens"), int(flag(partial, "partial")))
        if not handle:
            raise ValueError(last_error(functions))
        self._handle = handle
        weakref.finalize(self, functions.kvferry_plan_free, handle).atexit = False  # type: ignore[misc]
        self.transfers = tuple(map(self._transfer, range(functions.kvferry_plan_transfers(handle))))

    def _array(self, places: Sequence[Place]) -> Any:
        array = (kvferry_place_t * len(places))()
        for i, place in enumerate(places):
            array[i] = place.entry(self._functions)
        return array

    def _transfer(self, index: int) -> Moved:
        t = kvferry_plan_transfer_t()
        self._functions.kvferry_plan_transfer(self._handle, index, byref(t))
        return Moved(t.source, t.destination, t.ranges, t.bytes)

    def handle(self, functions: Functions) -> int:
        """The plan's handle in a loaded copy of the library. ValueError in a child that was forked meanwhile."""
        if functions is not self._functions:
            raise ValueError("this plan was made before fork(): make it again from its layouts")
        return self._handle

    def check_index(self, side: str, index: int) -> int:
        """The index of a "source" or a "destination". ValueError where there is none with it."""
        count = self._sides[side]
        if not 0 <= integer(index, side) < count:
            raise ValueError(f"there is no {side} {index}: the plan has {count}, and the first is 0")
        return index

    @property
    def ranges(self) -> int:
        """How many ranges move, each contiguous on both sides."""
        return sum(t.ranges for t in self.transfers)

    @property
    def bytes(self) -> int:
        """How many bytes move."""
        return sum(t.bytes for t in self.transfers)

    def write(
        self,
        engine: AnyEngine,
        peers: Peers,
        *,
        source: int = 0,
        timeout: float | None = None,
        context: Context | None = None,
    ) -> None:
        """Move what this process has as one of the sources to the destinations, and wait.

        peers are the destinations' names, in the plan's order; source is this process's index in the sources. The rest
        is as for read().
        """
        self.check_index("source", source)
        mine = [(i, t.destination) for i, t in enumerate(self.transfers) if t.source == source]
        self._move(engine, OPCODE_WRITE, mine, peers, timeout, context)

    def read(
        self,
        engine: AnyEngine,
        peers: Peers,
        *,
        destination: int = 0,
        timeout: float | None = None,
        context: Context | None = None,
    ) -> None:
        """Move what this process needs as one of the destinations from the sources, and wait.

        engine is a kvferry.Engine, or a mooncake.engine.TransferEngine that was initialized. peers are the sources'
        names, in the plan's order; destination is this process's index in the destinations. The time limit is timeout,
        in seconds, and a second for each GiB; None is the engine's. TransferError says why not all bytes have moved.
        context is as for Peer.write(), and takes a kvferry.Engine: there is a span for each peer.
        """
        self.check_index("destination", destination)
        mine = [(i, t.source) for i, t in enumerate(self.transfers) if t.destination == destination]
        self._move(engine, OPCODE_READ, mine, peers, timeout, context)

    def _move(
        self,
        of: AnyEngine,
        opcode: int,
        transfers: Sequence[tuple[int, int]],
        peers: Peers,
        timeout: float | None,
        context: Context | None,
    ) -> None:
        """Move some transfers, each given by its index and its peer's."""
        engine, most, named = _engine(of, timeout)
        total = sum(self.transfers[index].bytes for index, _ in transfers)
        what = f"{'write' if opcode == OPCODE_WRITE else 'read'} {total} bytes of a plan"
        names = [peers] if isinstance(peers, str) else peers
        if not isinstance(names, Sequence):
            raise TypeError(f"peers are named by a str, or by a list of them, not {type(peers).__name__}")
        for _, peer in transfers:
            if peer >= len(names):
                raise ValueError(f"the plan needs peer {peer}, and {len(names)} are named")
        if context is not None:
            self._move_traced(of, opcode, [(index, names[peer]) for index, peer in transfers], most, context)
            return
        deadline = time.monotonic() + most
        segments = []
        for index, peer in transfers:
            segment = engine.segment(names[peer], deadline - time.monotonic())
            if segment < 0:
                raise _failure(engine, segment, most, named, names[peer], what)
            segments.append((segment, index))
        if not segments:
            return
        extra = total / GIB
        code = engine.transfer_plan(opcode, self._handle, segments, deadline - time.monotonic(), lambda: extra)
        if code != 0:
            who = ", ".join(sorted({names[peer] for _, peer in transfers}))
            raise _failure(engine, code, most + extra, and_size(named), who, what)

    def _move_traced(
        self, of: AnyEngine, opcode: int, transfers: Sequence[tuple[int, str]], most: float, context: Context
    ) -> None:
        """Move some transfers, each given by its index and its peer's name, with a span for each."""
        from kvferry._native import Engine
        from kvferry._peers import Peer
        from kvferry._transfers import GIVE_UP, Transfer

        if not isinstance(of, Engine):
            raise TypeError(f"with a context, plans take a kvferry.Engine, not {type(of).__name__}")
        most += sum(self.transfers[index].bytes for index, _ in transfers) / GIB
        started: list[Transfer] = []
        try:
            for index, name in transfers:
                peer, moved = Peer(of, name), self.transfers[index]
                move = peer.write if opcode == OPCODE_WRITE else peer.read
                started.append(
                    move(self, source=moved.source, destination=moved.destination, timeout=most, context=context)
                )
            for transfer in started:
                transfer.result()
        except BaseException:
            for transfer in started:
                transfer.cancel()
            for transfer in started:
                transfer.wait(GIVE_UP)
            raise

    def __repr__(self) -> str:
        return f"<Plan of {self.bytes} bytes in {self.ranges} ranges, {len(self.transfers)} transfers>"


def plan(source: Places, destination: Places, tokens: int, *, partial: bool = False) -> Plan:
    """Find out what has to move for so many tokens, from processes that have a cache to processes that need it.

    source and destination are Layout.blocks(), Layout.slots() or an Offered, or a list of these: one for each process,
    for example of tensor or pipeline parallelism. Each element of a destination comes from one source, also where
    several have it. partial: elements that no source has stay as they are, where they are an error otherwise.

    ValueError says what does not match: element types, sizes of the model, tables without room for the tokens or with
    numbers out of range, a place that two tokens would have, layers or heads that no source has. Takes microseconds.
    """
    return Plan(_places(source), _places(destination), tokens, partial)


def _places(given: Places) -> Sequence[Place]:
    sides = given if isinstance(given, (list, tuple)) and not isinstance(given, Place) else [given]
    for side in sides:
        if not isinstance(side, (Place, Offered)):
            raise TypeError(
                "each side of a plan is Layout.blocks(), Layout.slots() or an Offered, or a list of these, "
                f"not {type(side).__name__}"
            )
    return [side.place() if isinstance(side, Offered) else side for side in sides]


def _engine(of: AnyEngine, timeout: float | None) -> tuple[Engine, float, str]:
    """The native engine, and the time limit in seconds without the time for the bytes, and its name."""
    if not isinstance(of, Engine) and not hasattr(of, "_engine"):
        raise TypeError(f"a kvferry.Engine or a TransferEngine of Mooncake's is needed, not {type(of).__name__}")
    if hasattr(of, "check_usable"):
        of.check_usable("move a plan")
    engine: Engine | None = of if isinstance(of, Engine) else of._engine
    if engine is None:
        raise ValueError("the engine is not initialized")
    if timeout is not None:
        return engine, limit(timeout), "timeout"
    native: Any = of
    if hasattr(native, "limited_by"):
        return engine, native.timeout, native.limited_by
    return engine, engine.timeout(), setting()


def _failure(engine: Engine, code: int, limit: float, named: str, peers: str, what: str) -> TransferError:
    """Why a call of this thread failed with a code. limit is its time limit in seconds, by that name."""
    reason = engine.last_error()
    if code == KVFERRY_ERR_TIMED_OUT:
        return TimedOut(f"{given_up(limit, named)}: {reason}", who=peers, what=what)
    return (PeerUnreachable if code in UNREACHABLE else TransferError)(reason, who=peers, what=what)
