"""A short request to an engine to which many peers write long blocks all the time, or from which they read them: alone,
beside one peer, beside many.

The target is one engine. The peers are engines of a few processes, each with a thread that calls one batch after the
other. The one with the short requests has a process of its own. Beside the same peers, the plain C program sends short
requests to itself: they wait for processors alone, and not for the target.

On a large machine the peers' processes have half of the processors, and everybody else the other half: peers on other
hosts would not take processors from the target either.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
from collections.abc import Iterator
from typing import Callable

from comparison.case import KIB, MANY, MIB, Case
from comparison.pairs import LOOPBACK, End, EndError, Measured, Pair, PlainC, Setup
from comparison.results import DIRECT, MOONCAKE, OURS, Results
from comparison.running import SETUPS, Make, Run, attempt, dropping, opened
from tables import table

ENGINES = (OURS, DIRECT, MOONCAKE)
PEERS = (1, 64)
PROCESSES = 4  # that the engines of the peers share
EACH = max(PEERS) // PROCESSES
BULKS = [Case(operation, MIB, 2) for operation in ("write", "read")]  # of each peer
SPAN = BULKS[0].span
SHORT = [Case(operation, 4 * KIB, 1) for operation in ("write", "read")]
BESIDE = "plain C beside ours, no shortcut"
LONGER = 5  # times as long as other sections: beside many peers there are few short requests in a second

Times = dict[str, float]  # of short requests; see Results.crowd


class Crowd(Pair):
    """Its initiator has the short requests. The peers' places at the target are those of threads of BULK, but for the
    first one, which is left to the initiator. To be closed."""

    def __init__(self, run: Run, setup: Setup) -> None:
        places = max(PEERS) + 1
        peers, others = halves()
        with on(others):
            super().__init__(setup, run.machine.pythons, run.logs, LOOPBACK, SPAN * places, SPAN * places)
        self.seconds = LONGER * run.options.seconds
        try:
            with on(peers):
                self._peers = [self._start("initiator", setup.initiator, EACH * SPAN, SPAN) for _ in range(PROCESSES)]
            with self.awake():
                self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        name, address = self.places[0]
        for number, peers in enumerate(self._peers):
            peers.begun()
            peers.ask("add_engines", EACH, SPAN)
            peers.ask("connect", name, address + self._first(number) * SPAN)

    @staticmethod
    def _first(number: int) -> int:
        """The place of the first peer of a process."""
        return 1 + number * EACH

    def check_bulk(self, bulk: Case) -> None:
        """Have every peer move its blocks once, and compare every byte. EndError when one differs."""
        case, target, writes = bulk._replace(threads=EACH), self.targets[0], bulk.operation == "write"
        with self.awake():
            target.ask("prepare", bulk._replace(threads=max(PEERS) + 1), "target", not writes)
            for number, peers in enumerate(self._peers):
                peers.ask("prepare", case, "initiator", writes)
                peers.ask("push_once", bulk, EACH)
                if peers.ask("digest", case, "initiator") != target.ask("digest", case, "target", self._first(number)):
                    raise EndError(f"bytes differ after {bulk} of each peer")

    def ask(self, short: Case) -> Times:
        """Short requests of the initiator to the target."""
        found = self.initiator.ask("run", short, self.seconds)
        return times(Measured(found["seconds"], found["bytes"], found["p50"], found["p99"], 0), short)

    def many(self, bulk: Case, count: int, meanwhile: Callable[[], Times] = dict) -> tuple[float, Times]:
        """The rate of so many peers at once, in bytes in a second, and what was measured meanwhile."""
        pushing = list(self._shares(count))
        with self.awake():
            for peers, engines in pushing:
                peers.begin("push", bulk, engines, self.seconds)
            found = meanwhile()
            rates = [each["bytes"] / each["seconds"] for each in (peers.result("push") for peers, _ in pushing)]
        return sum(rates), found

    def _shares(self, count: int) -> Iterator[tuple[End, int]]:
        """The processes with so many peers in all, and how many each has of them."""
        for peers in self._peers:
            if count > 0:
                yield peers, min(count, EACH)
            count -= EACH


def halves() -> tuple[set[int], set[int]]:
    """The processors of the peers' processes, and those of all others: on a small machine all of them for both."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < MANY:
        return set(processors), set(processors)
    half = len(processors) // 2
    return set(processors[:half]), set(processors[half:])


@contextlib.contextmanager
def on(processors: set[int]) -> Iterator[None]:
    """Processes that are started in the block run on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def crowd(run: Run) -> None:
    making: dict[str, Make[Crowd]] = {
        name: functools.partial(Crowd, run, SETUPS[name]) for name in ENGINES if run.can(SETUPS[name])
    }
    with opened(run, making) as crowds, contextlib.ExitStack() as stack:
        with on(halves()[1]):
            plain = PlainC(run.machine.rawtcp, 1, LOOPBACK, MIB) if run.machine.rawtcp else None
        if plain:
            stack.callback(plain.close)
        for name in list(crowds):
            with attempt(run, f"{max(PEERS)} peers, {name}"), dropping(crowds, name):
                for bulk in BULKS:
                    crowds[name].check_bulk(bulk)
                    run.results.checked.setdefault("many peers", []).append(f"{name}: {bulk} of {max(PEERS)} peers")
        for _ in run.rounds():
            for name in list(crowds):
                with attempt(run, f"short requests beside many peers, {name}"), dropping(crowds, name):
                    for bulk in BULKS:
                        measure(run, name, bulk, crowds[name], plain if name == DIRECT else None)


def measure(run: Run, name: str, bulk: Case, peers: Crowd, plain: PlainC | None) -> None:
    """One round; see Results.crowd."""
    counts = [count for count in PEERS if count <= run.options.largest]
    alone = {count: peers.many(bulk, count)[0] for count in counts}
    for short in SHORT:
        asking = {line(name, short, bulk): functools.partial(peers.ask, short)}
        if plain:
            asking[line(BESIDE, short, bulk)] = functools.partial(own, plain, short, peers.seconds)
        for count in (0, *counts):
            for who, ask in asking.items():
                rate, found = peers.many(bulk, count, ask)
                if count:
                    found.update({"rate": rate / 1e9, "kept": rate / alone[count]})
                run.results.crowd.setdefault(who, {}).setdefault(count, []).append(found)


def own(plain: PlainC, short: Case, seconds: float) -> Times:
    """Short requests of the plain C program to a target of its own: what the kernel's scheduler makes of the peers."""
    return times(plain.move(short, seconds), short)


def times(found: Measured, short: Case) -> Times:
    return {"p50": found.p50, "p99": found.p99, "requests": found.bytes / short.block / found.seconds}


def line(name: str, short: Case, bulk: Case) -> str:
    """What results call the short requests of an engine beside peers."""
    return f"{name}, {short.operation.upper()} beside peers that {bulk.operation}"


def report(results: Results) -> str:
    rows = [
        [name, str(count), *(median(rounds, key, form) for key, (_, form) in COLUMNS.items())]
        for name, by_count in results.crowd.items()
        for count, rounds in by_count.items()
    ]
    return table(["", "peers", *(title for title, _ in COLUMNS.values())], rows)


def median(rounds: list[dict[str, float]], key: str, form: str) -> str:
    values = [each[key] for each in rounds if key in each]
    return form.format(statistics.median(values)) if values else ""


COLUMNS = {  # of Results.crowd: its title, and how it is written
    "p50": ("p50", "{:.0f}"),
    "p99": ("p99", "{:.0f}"),
    "requests": ("in a second", "{:.0f}"),
    "rate": ("GB/s of the peers", "{:.2f}"),
    "kept": ("part of their rate alone", "{:.2f}"),
}
