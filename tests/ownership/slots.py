"""A worker's place among the others: its processes, one after the other, and the engines in them."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np

from support import devices, venvs
from support.peer import Peer, PeerError, environment

from . import arena, links, words
from .model import PLACES, WHOLE, Incarnation, Model, Operation, Promise, Region, State, View, Violation
from .plan import Position
from .words import Kind, Words

GRACE = 15.0  # seconds that a call may take beyond its limit, on a busy machine
AT_ONCE = 5.0  # seconds that a call may take that waits for nobody
START_LIMIT = 60.0  # seconds that a process may take to begin
PORTS_LIMIT = 5.0  # seconds that an engine may take to get its ports when nobody holds them, on a busy machine
PID_TRIES = 40


@dataclasses.dataclass(eq=False)
class Call:
    """A request that is under way."""

    process: Process
    what: str
    limit: float
    began: float
    stopped_before: float

    @property
    def seconds(self) -> float:
        """How long it has taken; the time that the process was stopped does not count."""
        return time.monotonic() - self.began - (self.process.stopped_seconds() - self.stopped_before)

    @property
    def is_overdue(self) -> bool:
        return self.process.is_ours and self.seconds > self.limit + GRACE


class Process:
    """A worker process and its arena."""

    def __init__(self, peer: Peer, position: Position) -> None:
        self.peer = peer
        self.is_ours = position.ours
        self.places = position.places
        self.is_over = False  # it was killed, or is about to be
        self.calls: set[Call] = set()
        self.buffers = collections.deque(range(arena.REGIONS, arena.AREAS))  # the one that rested longest is first
        self.rests: dict[int, Operation] = {}  # whose call was the last to use a buffer
        self.registered: set[int] = set()  # buffers that are
        self.children_until = 0.0  # when the last of its forked children ends
        self.addresses: list[int] = []
        self._stopped_since: Optional[float] = None
        self._stopped_seconds = 0.0
        self._descriptor, self._mapping = arena.create()
        self._words: Words = np.frombuffer(self._mapping, np.uint64)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    # The arena

    def body(self, area: int) -> Words:
        return self._part(arena.body(area))

    def shadow(self, area: int) -> Words:
        return self._part(arena.shadow(area))

    def result(self, area: int) -> Words:
        return self._part(arena.result(area))

    def submitted(self, area: int) -> float:
        """By when the engine had the whole of the call that uses a buffer, on the clock of time.monotonic; 0 where that
        is not known."""
        return float(self._part(arena.submitted(area))[:1].view(np.float64)[0])

    def is_asked(self, area: int) -> None:
        """A call that uses a buffer is about to be asked for."""
        self._part(arena.submitted(area))[0] = 0

    def _part(self, offset: int) -> Words:
        first = offset // words.WORD
        return self._words[first : first + PLACES]

    def is_visible(self, area: int) -> bool:
        """Whether the checker sees the memory itself: it is the host's."""
        return self.places[area] == "host"

    # Requests

    async def ask(self, op: str, limit: float = AT_ONCE, **arguments: Any) -> Any:
        """Send a request and wait for its answer. PeerError where the process ends before, as it was to."""
        pending = self.peer.start(op, **arguments)
        call = Call(self, f"{op} {arguments}", limit, time.monotonic(), self.stopped_seconds())
        self.calls.add(call)
        answer = asyncio.wrap_future(pending.future)
        answer.add_done_callback(lambda done: done.exception())  # whether or not somebody still waits for it
        try:
            return await asyncio.shield(answer)
        except PeerError as e:
            if self.is_ours and not self.is_over:
                raise Violation(Promise.ALIVE, f"{op} {arguments}: {e}", [self.peer.log()[-4000:]]) from None
            raise
        finally:
            self.calls.discard(call)

    # Signals

    def stop(self) -> None:
        self._stopped_since = time.monotonic()
        self.peer.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._stopped_seconds = self.stopped_seconds()
        self._stopped_since = None
        self.peer.process.send_signal(signal.SIGCONT)

    @property
    def is_stopped(self) -> bool:
        return self._stopped_since is not None and not self.is_over

    def stopped_seconds(self) -> float:
        now = time.monotonic()
        return self._stopped_seconds + (now - self._stopped_since if self._stopped_since is not None else 0.0)

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.is_over = True
        self.peer.kill()

    def close(self) -> None:
        """Close the arena's file: both sides have mapped it, or the process will not."""
        os.close(self._descriptor)


class Slot:
    """A place for a worker. Its engine is `engine`, or None while there is none that can be called."""

    def __init__(self, index: int, position: Position, model: Model, logs: Path, host: Optional[links.Host]) -> None:
        self.index = index
        self.position = position
        self.names: list[str] = []  # of its engines, the latest at the end
        self.latest: Optional[Incarnation] = None
        self.engine: Optional[Incarnation] = None
        self.life = asyncio.Lock()  # held by what ends an engine or begins one
        self.memory = asyncio.Lock()  # held by what withdraws regions or closes the engine
        self.host = host
        self._process: Optional[Process] = None
        self._model = model
        self._logs = logs
        self._up = asyncio.Event()
        self._number = 0

    @property
    def process(self) -> Process:
        assert self._process is not None, "the slot was not started"
        return self._process

    async def until_up(self) -> tuple[Process, Incarnation]:
        """Wait until there is an engine that can be called."""
        while self.engine is None:
            await self._up.wait()
        return self.process, self.engine

    # Processes

    async def start(self, pid: int = 0) -> None:
        """Start a process and an engine in it; with that id, where it is given."""
        process = self._spawn(pid)
        self._process = process
        for area in range(arena.AREAS):
            process.body(area)[:] = words.run(words.head(Kind.UNUSED, self.index, 0, 0), 0, PLACES)
        engine = self._prepare(process)
        places, private = list(self.position.places), self.position.private
        try:
            process.addresses = await process.ask(
                "setup", START_LIMIT, path=process.path, places=places, private=private
            )
        finally:
            process.close()
        await self._open(process, engine)

    def _spawn(self, pid: int) -> Process:
        for _ in range(PID_TRIES):
            if pid:
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
            process = Process(self._start_peer(), self.position)
            if pid in (0, process.peer.pid):
                if pid:
                    self._model.counts["process ids used again"] += 1
                return process
            process.end()
            process.close()
        return self._spawn(0)

    def _start_peer(self) -> Peer:
        self._number += 1
        label = f"slot {self.index}, process {self._number}, {self.position.kind}"
        log, enter = self._logs / f"{label}.log", self.host.enter if self.host else ()
        settings = self.position.settings
        if not self.position.ours:
            env = environment(settings, ours=False)
            return Peer(label, venvs.mooncake(self.position.kind), env, log, "ownership.worker", enter)
        if any(place != "host" for place in self.position.places):
            settings = devices.settings(**settings)
        env = environment({**venvs.ours(), **settings}, ours=True)
        return Peer(label, sys.executable, env, log, "ownership.worker", enter)

    def kill(self) -> int:
        """Kill the process, and return its id."""
        process, engine = self.process, self._retire()
        process.end()
        self._model.is_over(engine)
        self._model.ports_held_until = max(self._model.ports_held_until, process.children_until)
        return process.peer.pid

    async def fork(self, seconds: float) -> None:
        """Fork a child that has the process's descriptors for so long. With them it holds the ports of an engine that
        is killed; an engine that is closed gives its ports back nonetheless."""
        process, earlier = self.process, self.process.children_until
        # The process may be killed before it has answered, and have the child by then.
        process.children_until = max(earlier, time.monotonic() + AT_ONCE + seconds)
        await process.ask("fork", seconds=seconds)
        process.children_until = max(earlier, time.monotonic() + seconds)

    def end(self) -> None:
        """Kill whatever process there is."""
        if self._process:
            self._process.end()

    # Engines

    def _prepare(self, process: Process) -> Incarnation:
        """Fill the offered memory for an engine that is about to be made."""
        engine = self._model.incarnate(self.index, self.position.ours)
        for region in engine.regions:
            self.fill(process, region)
        return engine

    def fill(self, process: Process, region: Region) -> None:
        """Fill memory that nobody else may touch, which is to be offered from now on."""
        fill = self._model.fill(Kind.INITIAL, region.owner)
        process.body(region.index)[:] = words.run(fill.head, 0, PLACES)
        cover = self._model.fill(Kind.WITHDRAWN, region.owner)
        process.shadow(region.index)[:] = words.run(cover.head, 0, PLACES)
        region.offer(fill, cover, self._model.now())

    async def _open(self, process: Process, engine: Incarnation) -> None:
        host = self.host.address if self.host else "127.0.0.1"
        process.registered = {area for area in range(arena.REGIONS, arena.AREAS) if area % 2 == 0}
        registered = [*range(arena.REGIONS), *sorted(process.registered)]
        patience = max(0.0, self._model.ports_held_until - time.monotonic()) + PORTS_LIMIT
        port = await process.ask("open", START_LIMIT, host=host, registered=registered, patience=patience)
        engine.addresses = process.addresses[: arena.REGIONS]
        self._model.named(engine, f"{host}:{port}")
        for region in engine.regions:
            region.turn(State.OFFERED, self._model.now())
        if engine.name in self.names:
            self.names.remove(engine.name)
            self._model.counts["names that came back"] += 1
        self.names.append(engine.name)
        self._model.counts["engines"] += 1
        self.latest = self.engine = engine
        self._up.set()

    def _retire(self) -> Incarnation:
        """The end of the engine is about to begin."""
        engine, self.engine = self.engine, None
        assert engine is not None
        self._up.clear()
        self._model.ends(engine)
        for region in engine.regions:
            region.turn(State.CHANGING, self._model.now())
        return engine

    async def close_engine(self) -> Incarnation:
        """Close the engine; its memory has been taken back, then."""
        process, engine = self.process, self._retire()
        await process.ask("close")
        self._model.is_over(engine)
        for region in engine.regions:
            region.turn(State.WITHDRAWN, self._model.now())
        return engine

    async def reopen(self) -> None:
        """Make an engine in the same process, over the same memory."""
        process = self.process
        engine = self._prepare(process)
        await process.ask("load", areas=list(range(arena.REGIONS)))
        await self._open(process, engine)

    # Looking

    async def check(self, process: Process, region: Region) -> None:
        """Judge all of a region, unless it is being changed."""
        if region.state is State.CHANGING or process.is_over:
            return
        if process.is_visible(region.index):
            self._judge(region, process.body(region.index), region.view(WHOLE))
            return
        since = self._model.now()
        view = region.keep(WHOLE, since)
        await process.ask("look", area=region.index)
        if region.changed < since:
            self._judge(region, process.result(region.index), view)

    def _judge(self, region: Region, found: Words, view: View) -> None:
        if region.state is State.WITHDRAWN:
            self._model.check_covered(region, found.copy())
        else:
            self._model.check_memory(region, found.copy(), view)

    def look_at(self, operation: Operation) -> None:
        """Judge the places of an operation, if they are of this engine, and the checker sees them."""
        if self.engine is None or self.engine.name != operation.name:
            return
        region = self.engine.regions[operation.region]
        if region.state is not State.OFFERED or not self.process.is_visible(region.index):
            return
        body = self.process.body(region.index)
        for span in operation.spans:
            self._model.check_memory(region, body[span.first : span.end].copy(), region.view(span))

    async def check_rest(self, process: Process, buffer: int) -> None:
        """Judge a buffer that no call uses."""
        operation = process.rests.get(buffer)
        if operation is None:
            return
        if not process.is_visible(buffer):
            await process.ask("look", area=buffer)
        found = process.body(buffer) if process.is_visible(buffer) else process.result(buffer)
        self._model.check_rest(operation, found[: operation.count])
