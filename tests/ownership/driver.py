"""A world from its start to its end, and worlds one after the other for as long as a run lasts.

1. Every slot starts a process with an engine.
2. Streams of calls, owners that take memory back, faults, and watches of all memory run until the time is over.
3. What was stopped goes on, links are healed, calls and faults come to their end.
4. Late bytes have a moment to arrive; then all memory is looked at once more, and every buffer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from support import peer as peers
from support.peer import PeerError

from . import faults, links, plan, report
from .model import Model, Promise, Violation
from .slots import START_LIMIT, Call, Process, Slot
from .transfers import STREAMS, Owner, Stream, Watch

WORLD_SECONDS = 6.5
PATIENCE = 4  # times the seconds of a run that it may take to do enough
END_LIMIT = 150.0  # seconds that calls, faults and starts may take after the time is over; each has a limit of its own
SETTLE = 0.5  # seconds in which late bytes arrive
WATCHED_EVERY = 0.5  # seconds
DUMP_TIME = 1.0  # seconds that a process has to write its stacks
LOG_TAIL = 20_000  # characters


class Running:
    """A world that runs. Violations are raised, or noted where the run is to go on."""

    def __init__(self, world: plan.World, logs: Path, goes_on: bool, seed: int, began: float) -> None:
        self.plan = world
        self.model = Model()
        self.over = False
        self.slots: Sequence[Slot] = ()
        self.violations: list[Violation] = []
        self._logs = logs
        self._goes_on = goes_on
        self._seed = seed
        self._began = began  # when the run did, by time.monotonic()

    def violated(self, violation: Violation) -> None:
        told = {(each.promise, tuple(each.found[:1])) for each in self.violations}
        self.violations.append(violation)
        if (violation.promise, tuple(violation.found[:1])) not in told:
            print(report.violation(violation, self._seed, self.plan, str(self._logs)), flush=True)
            print(f"  found {time.monotonic() - self._began:.1f} s after the run began", flush=True)
        if not self._goes_on or violation.promise in (Promise.BOUNDED, Promise.ALIVE):
            raise violation

    async def run(self, seconds: float) -> None:
        hosts = [links.Host(n + 1) for n in range(len(self.plan.positions))] if self.plan.way == "link" else []
        self.slots = [
            Slot(index, position, self.model, self._logs, hosts[index] if hosts else None)
            for index, position in enumerate(self.plan.positions)
        ]
        try:
            await asyncio.gather(*(slot.start() for slot in self.slots))
            await self._live(seconds)
        except Violation as violation:
            if violation not in self.violations:
                with contextlib.suppress(Violation):
                    self.violated(violation)
        finally:
            self._end(hosts)

    async def _live(self, seconds: float) -> None:
        watches = [Watch(self, slot) for slot in self.slots]
        work: list[Coroutine[Any, Any, None]] = [watch.run() for watch in watches]
        for slot in self.slots:
            work += [Stream(self, slot, number).run() for number in range(STREAMS)]
            if slot.position.ours and "withdraw" in self.plan.faults:
                work.append(Owner(self, slot).run())
        work += [faults.Faults(self, number).run() for number in range(faults.STREAMS)]
        tasks = [asyncio.create_task(each) for each in work]
        overseers = [asyncio.create_task(self._look_for_hangs()), asyncio.create_task(self._look_for_deaths())]
        try:
            await self._wait([*tasks, *overseers], seconds)
            self.over = True
            await self._wait_for_all(tasks, overseers)
            await asyncio.sleep(SETTLE)
            for watch in watches:
                await watch.look()
                await watch.look_at_buffers()
        finally:
            self.over = True
            for slot in self.slots:
                slot.end()  # what still waits for an answer gets one
            for task in (*tasks, *overseers):
                task.cancel()
            await asyncio.gather(*tasks, *overseers, return_exceptions=True)

    @staticmethod
    async def _wait(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
        """Wait for so long, or until a task fails."""
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def _wait_for_all(self, tasks: Sequence[asyncio.Task[None]], overseers: Sequence[asyncio.Task[None]]) -> None:
        deadline = time.monotonic() + END_LIMIT
        while not all(task.done() for task in tasks):
            await self._wait([*(task for task in tasks if not task.done()), *overseers], WATCHED_EVERY)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the checker itself has not come to an end: {[t for t in tasks if not t.done()]}")
        for task in tasks:
            task.result()

    async def _look_for_hangs(self) -> None:
        """Find calls that are overdue twice in a row: the answer may have come while the checker was busy."""
        before: set[Call] = set()
        while True:
            await asyncio.sleep(WATCHED_EVERY)
            overdue = [call for slot in self.slots for call in slot.process.calls if call.is_overdue]
            for call in overdue:
                if call in before:
                    self.violated(hang(call, [each.process for each in self.slots]))
            before = set(overdue)

    async def _look_for_deaths(self) -> None:
        """Replace processes of Mooncake that ended by themselves. Ours are found by who called them."""
        while True:
            await asyncio.sleep(WATCHED_EVERY)
            for slot in self.slots:
                if slot.position.ours or not slot.process.peer.ended or slot.process.is_over:
                    continue
                async with slot.life:
                    if slot.process.peer.ended:
                        self.model.counts["ends of Mooncake by itself"] += 1
                        slot.kill()
                        await slot.start()

    def _end(self, hosts: Sequence[links.Host]) -> None:
        self.over = True
        for slot in self.slots:
            slot.end()
        for host in hosts:
            host.close()
        peers.started.clear()


def hang(call: Call, processes: Sequence[Process]) -> Violation:
    """The violation of a call that does not return, with what every thread of every process does."""
    found = [f"{call.what} in {call.process.peer} for {call.seconds:.1f} s"]
    for process in processes:
        found += stacks(process)
    return Violation(
        Promise.BOUNDED, f"a call has not returned {call.seconds - call.limit:.1f} s after its limit", found
    )


def stacks(process: Process) -> list[str]:
    """What the threads of a process do, as the kernel, Python and Go tell it. It ends the process."""
    pid = process.peer.pid
    lines = [f"threads of {process.peer}{', which is stopped' if process.is_stopped else ''}:"]
    with contextlib.suppress(OSError):
        for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
            what = [(thread / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
            state = next(line for line in (thread / "status").read_text().splitlines() if line.startswith("State"))
            lines.append(f"  {thread.name} {' '.join(what)} {state}")
    process.is_over = True
    with contextlib.suppress(OSError):
        for number in (signal.SIGCONT, signal.SIGUSR1, signal.SIGSEGV):  # Go's runtime tells its stacks at the last one
            os.kill(pid, number)
            time.sleep(DUMP_TIME)
    return [*lines, process.peer.log()[-LOG_TAIL:]]


Outcome = tuple[list[Violation], report.Counts, list[tuple[plan.World, float]]]


def run(worlds: Iterator[plan.World], seconds: float, logs: Path, goes_on: bool, seed: int) -> Outcome:
    """Run worlds one after the other for so long, and further ones until enough was done, which takes longer on a slow
    machine. Tell what was found and done, and the worlds of the first so many seconds, with how long each was to last:
    they say what is enough."""
    counts: report.Counts = collections.Counter()
    violations: list[Violation] = []
    lived: list[tuple[plan.World, float]] = []
    start = time.monotonic()
    while goes_on or not violations:
        left = start + seconds - time.monotonic()
        if left <= 0 and (left < -(PATIENCE - 1) * seconds or not report.too_little(counts, lived)):
            break
        world = next(worlds)
        folder = logs / f"world {world.number}"
        folder.mkdir(parents=True)
        print(f"{world}: {', '.join(world.faults)}", flush=True)
        running = Running(world, folder, goes_on, seed, start)
        lasts = min(WORLD_SECONDS, max(left, 2.0)) if left > 0 else WORLD_SECONDS
        if left > 0:
            lived.append((world, lasts))
        began = time.monotonic()
        with contextlib.suppress(PeerError):
            asyncio.run(running.run(lasts))
        print(f"  {time.monotonic() - began:.1f} s", flush=True)
        counts.update(running.model.counts)
        counts["worlds"] += 1
        violations += running.violations
    return violations, counts, lived


assert START_LIMIT > 0
