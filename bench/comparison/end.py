"""A process at one end of transfers: `python -m comparison.end KIND HOST PLACE SIZE REGISTERED [KEEPER]`, run in bench.

It has an engine and SIZE bytes of memory at PLACE, "host" or "cuda:0" for example, the first REGISTERED of which are
known to the engine, and does what it is asked: a line of JSON on standard input for each request, and one on standard
output for each answer. KEEPER is the process of a network namespace to go to first.

It runs in the interpreter of the engine, so it needs nothing but Python and what is beside it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib
import json
import os
import random
import select
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import link
from comparison import reorder
from comparison.adapters import KINDS, Adapter, Blocks, Mooncake, Move, Ours, change_plan, load
from comparison.case import MIB, Case, percentile
from comparison.memory import allocate, peak

PR_SET_PDEATHSIG = 1  # of sys/prctl.h
WARM_UP = 0.15  # of the time of a run: as much again is run before it
PAUSE = 0.001  # seconds between two requests of a caller that does not send one after the other
REGION = 512  # bytes of one of many small regions, and of the gap behind it
REGIONS = 1 << 16  # where they begin in the memory


class Served:
    """What the process does; each public method is a request."""

    def __init__(self, kind: str, host: str, place: str, size: int, registered: int) -> None:
        self._kind, self._host, self._place, self._registered = kind, host, place, registered
        load(kind)
        self._room = allocate(place, size)
        self._memory = self._room.address
        turned(random_step(), 1)  # what filling memory takes is no engine's
        self._bare = peak()
        self._room.touch(registered)
        self.engines: list[Adapter] = [KINDS[kind](host, place)]
        self.engine.register(self._memory, registered)
        self._peer, self._remote = "", 0

    @property
    def engine(self) -> Adapter:
        return self.engines[0]

    def place(self) -> tuple[str, int]:
        """The engine's name, and the address of its memory."""
        return self.engine.name(), self._memory

    def connect(self, name: str, address: int) -> None:
        """The peer whose memory the following requests are about."""
        self._peer, self._remote = self.engine.connect(name), address

    # Bytes

    def prepare(self, case: list[Any], side: str, source: bool) -> None:
        """Fill the blocks of a case: those of the source with random bytes, each with others; else with none."""
        data, one = 2 * random_step(), Case(*case)
        with self._room.rewritten(one.span * one.threads) as view:
            for number, offset in enumerate(self._offsets(one, side)):
                for start in range(offset, offset + one.block, MIB):
                    length = min(MIB, offset + one.block - start)
                    turn = (number * 4099 + start // MIB * 31) % MIB
                    view[start : start + length] = data[turn : turn + length] if source else bytes(length)

    def digest(self, case: list[Any], side: str, first: int = 0) -> str:
        """The digest of the blocks of a case in the order of the transfer, from those of a thread on."""
        digest, one = hashlib.sha256(), Case(*case)
        view = self._room.read(one.span * (first + one.threads))
        for offset in self._offsets(one, side, first):
            digest.update(view[offset : offset + one.block])
        return digest.hexdigest()

    @staticmethod
    def _offsets(case: Case, side: str, first: int = 0) -> Iterator[int]:
        for thread in range(first, first + case.threads):
            yield from case.offsets(side, thread)

    # Transfers

    def once(self, case: list[Any]) -> None:
        """Move each block of a case once."""
        for thread in range(Case(*case).threads):
            done(self._move(Case(*case), thread))

    def run(self, case: list[Any], seconds: float) -> dict[str, float]:
        """Move the blocks of a case for so long. cpu is this process's alone, for all_bytes, warming up included."""
        return self._measured(Case(*case), self._moves(Case(*case)), seconds)

    def _moves(self, case: Case) -> list[Move]:
        return [self._move(case, thread) for thread in range(case.threads)]

    def _move(self, case: Case, thread: int) -> Move:
        engine = self.engine
        if case.planned:
            assert isinstance(engine, Ours)
            return engine.planned(case.operation, self._peer, change_plan(case, self._memory, self._remote))
        blocks = self._blocks(case, thread, self._peer, self._remote)
        return engine.move(case.operation, blocks.packed("array") if case.change and self._kind == "ours" else blocks)

    def _blocks(self, case: Case, thread: int, peer: str, remote: int) -> Blocks:
        return Blocks(
            peer,
            [self._memory + offset for offset in case.offsets("initiator", thread)],
            [remote + offset for offset in case.offsets("target", thread)],
            [case.block] * case.blocks,
        )

    @staticmethod
    def _measured(case: Case, moves: list[Move], seconds: float) -> dict[str, float]:
        before = time.process_time()
        warm = len(timed(moves[0], WARM_UP * seconds))
        start = time.perf_counter()
        times = side_by_side([functools.partial(timed, move, seconds) for move in moves])
        took = time.perf_counter() - start
        cpu = time.process_time() - before
        size, calls = case.block * case.blocks, [each for part in times for each in part]
        return {
            "seconds": took,
            "bytes": len(calls) * size,
            "p50": percentile(calls, 0.5),
            "p99": percentile(calls, 0.99),
            "cpu": cpu,
            "all_bytes": (len(calls) + warm) * size,
        }

    def first(self, case: list[Any]) -> float:
        """How many times as long as a later one the first transfer of a case takes."""
        move = self._move(Case(*case), 0)
        first, *later = [timed(move, 0)[0] for _ in range(4)]
        return first / min(later)

    def beside(self, small: list[Any], bulk: list[Any], seconds: float) -> dict[str, float]:
        """One small request after the other, alone, and beside a bulk transfer to the same peer; see Results.beside."""
        behind = Case(*bulk).span // Case(*small).span  # the place of a thread that bulk does not touch
        one, many = self._move(Case(*small), behind), self._move(Case(*bulk), 0)
        done(many)  # the first one of a process touches its memory
        alone, bulk_alone = timed(one, seconds), timed(many, seconds)
        found = {"alone_p50": percentile(alone, 0.5)}
        for name, pause in (("beside", 0.0), ("spaced", PAUSE)):
            start = time.perf_counter()
            short, long = functools.partial(timed, one, seconds, pause), functools.partial(timed, many, seconds)
            times, bulk_beside = side_by_side([short, long])
            found[f"{name}_rate"] = len(times) / (time.perf_counter() - start)
            found[f"{name}_p50"], found[f"{name}_p99"] = percentile(times, 0.5), percentile(times, 0.99)
            found[f"{name}_kept"] = statistics.fmean(bulk_alone) / statistics.fmean(bulk_beside)
        return found

    def crossing(self, count: int, kind: str, seconds: float) -> float:
        """Microseconds of a call, in the middle of many, that writes so many neighbours of 8 bytes; arrays are of that
        kind ("list", "array", "numpy")."""
        blocks = self._blocks(Case("write", 8, count, scattered=False), 0, self._peer, self._remote).packed(kind)
        assert isinstance(self.engine, Mooncake)
        move = self.engine.batch("write", blocks)
        timed(move, WARM_UP * seconds)
        return percentile(timed(move, seconds), 0.5)

    def post(self, case: list[Any], times: int) -> dict[str, float]:
        """Microseconds to plan a change of layout, and to start its transfer, in the middle of so many calls each."""
        one, engine = Case(*case), self.engine
        assert isinstance(engine, Ours)
        planning = []
        for _ in range(times):
            before = time.perf_counter()
            plan = change_plan(one, self._memory, self._remote)
            planning.append(time.perf_counter() - before)
        starting = engine.post(one.operation, self._peer, plan, times)
        return {"to plan": percentile(planning, 0.5), "to start": percentile(starting, 0.5)}

    def transfers(self, count: int) -> None:
        """So many calls with a request of 4 KiB."""
        move = self._move(Case("write", 4096, 1), 0)
        for _ in range(count):
            done(move)

    # Whole blocks, put in order behind their transfer

    def cannot_reorder(self) -> str:
        """Why PyTorch cannot reorder memory of this process; "" where it can."""
        return reorder.missing()

    def receive_once(self, case: list[Any]) -> None:
        """Read the target's cache of a change of layout in plain blocks, and reorder them."""
        done(self._receiving(Case(*case)))

    def receive(self, case: list[Any], seconds: float) -> dict[str, float]:
        """run() with receive_once."""
        return self._measured(Case(*case), [self._receiving(Case(*case))], seconds)

    def reordering(self, case: list[Any], seconds: float) -> float:
        """Microseconds to reorder what was received, in the middle of as many times as fit."""
        reordered = reorder.Reorder(Case(*case).caches, self._memory, self._place)
        return percentile(timed(reordered, seconds), 0.5)

    def _receiving(self, case: Case) -> Move:
        assert case.operation == "read"
        places, begin = reorder.pieces(case.caches), self._memory + reorder.behind(case.caches)
        local, remote = ([start + place for place in places] for start in (begin, self._remote))
        read = self.engine.move("read", Blocks(self._peer, local, remote, [reorder.PIECE] * len(places)))
        reordered = reorder.Reorder(case.caches, self._memory, self._place)
        return lambda: read() and reordered()

    # Many peers

    def add_engines(self, count: int, each: int) -> list[tuple[str, int]]:
        """More engines, each of which has so many bytes of the memory; their places."""
        places = []
        for number in range(count):
            engine = KINDS[self._kind](self._host, self._place)
            address = self._memory + number * each
            engine.register(address, each)
            self.engines.append(engine)
            places.append((engine.name(), address))
        return places

    def add_peers(self, places: list[tuple[str, int]]) -> None:
        """Peers for spread()."""
        self._peers = [(self.engine.connect(name), address) for name, address in places]

    def spread(self, case: list[Any], peers: int, seconds: float) -> dict[str, float]:
        """run() with the first so many peers at once, the blocks of a case to or from each."""
        one = Case(*case)
        parts = [self._blocks(one, 0, peer, address) for peer, address in self._peers[:peers]]
        move = self.engine.spread(one.operation, parts)
        return self._measured(one._replace(blocks=one.blocks * peers), [move], seconds)

    def push(self, case: list[Any], engines: int, seconds: float) -> dict[str, float]:
        """run() with so many of add_engines() at once, each with the blocks of a thread and a thread of its own."""
        return self._measured(Case(*case), self._pushes(Case(*case), engines), seconds)

    def push_once(self, case: list[Any], engines: int) -> None:
        for move in self._pushes(Case(*case), engines):
            done(move)

    def _pushes(self, case: Case, engines: int) -> list[Move]:
        return [
            engine.move(case.operation, self._blocks(case, thread, engine.connect(self._peer), self._remote))
            for thread, engine in enumerate(self.engines[1 : engines + 1])
        ]

    # Many regions

    def regions(self, first: int, last: int) -> float:
        """Register small regions up to that number; microseconds for each."""
        start = time.perf_counter()
        for number in range(first, last):
            self.engine.register(self._memory + self._region(number), REGION)
        return (time.perf_counter() - start) / max(1, last - first) * 1e6

    def to_regions(self, regions: int, count: int, seconds: float) -> float:
        """Microseconds of a call, in the middle of many, that writes from and to regions chosen from so many."""
        chosen = random.Random(regions).choices(range(regions), k=count)
        offsets = [self._region(number) for number in chosen]
        local, remote = ([memory + offset for offset in offsets] for memory in (self._memory, self._remote))
        move = self.engine.move("write", Blocks(self._peer, local, remote, [REGION] * count))
        done(move)
        return percentile(timed(move, seconds), 0.5)

    @staticmethod
    def _region(number: int) -> int:
        return REGIONS + 2 * REGION * number

    # Resources

    def cpu(self) -> float:
        """Seconds of processor time that this process has used."""
        return time.process_time()

    def memory(self) -> dict[str, int]:
        """Bytes of the host: the most that this process ever had, what it had without an engine, what is registered."""
        registered = self._registered if self._room.on_host else 0
        return {"peak": peak(), "bare": self._bare, "registered": registered}

    def device_memory(self) -> int:
        """Bytes of the device that are in use, by whatever process."""
        return self._room.taken()

    def has(self, module: str) -> bool:
        try:
            importlib.import_module(module)
        except ImportError:
            return False
        return True


def random_step() -> bytes:
    """A MiB of random bytes."""
    return random.Random(os.urandom(8)).getrandbits(8 * MIB).to_bytes(MIB, "little")


def turned(data: bytes, turn: int) -> bytes:
    """The same bytes, beginning with another one."""
    return data[turn:] + data[:turn]


def done(move: Move) -> None:
    if not move():
        raise RuntimeError("a transfer failed")


def timed(move: Move, seconds: float, pause: float = 0.0) -> list[float]:
    """Move again and again for so long, at least once, with so many seconds between two calls; the seconds of each."""
    times = []
    start = time.perf_counter()
    end = start + seconds
    while True:
        done(move)
        now = time.perf_counter()
        times.append(now - start)
        if now >= end:
            return times
        if pause > 0:
            time.sleep(pause)
            now = time.perf_counter()
        start = now


def side_by_side(calls: list[Callable[[], list[float]]]) -> list[list[float]]:
    """What the calls return, each of which has a thread."""
    if len(calls) == 1:
        return [calls[0]()]
    results: list[list[float]] = [[] for _ in calls]
    failures: list[Exception] = []

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def lines(served: Served) -> Iterator[str]:
    """The lines of standard input. Engines that move nothing by themselves are called until there is one."""
    pending = b""
    spinning = [engine for engine in served.engines if engine.spins]
    while True:
        while b"\n" not in pending:
            while spinning and not select.select([0], [], [], 0)[0]:
                for engine in spinning:
                    engine.progress()
            read = os.read(0, 1 << 20)
            if not read:
                return
            pending += read
        line, pending = pending.split(b"\n", 1)
        yield line.decode()
        spinning = [engine for engine in served.engines if engine.spins]


def serve(kind: str, host: str, place: str, size: int, registered: int, keeper: int | None) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine says is no answer
    if keeper is not None:
        link.join(keeper)
    served = Served(kind, host, place, size, registered)
    print(json.dumps({"result": served.place()}), file=answers, flush=True)
    gc.disable()  # its pauses are no engine's
    for line in lines(served):
        request, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(served, request)(*arguments)}
        except Exception as e:  # whatever it is, the other end says it
            answer = {"error": f"{request}: {type(e).__name__}: {e}"}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever is suspended would not see its input end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end gets it too, and ends this process
    kind, host, place, size, registered, *keeper = sys.argv[1:]
    serve(kind, host, place, int(size), int(registered), int(keeper[0]) if keeper else None)
    os._exit(0)  # how an engine ends is not measured


if __name__ == "__main__":
    main()
