"""What is wanted of kvferry, beside what was measured."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from comparison import busy, crowd, layouts, observed, secured
from comparison.case import KIB, MANY, MIB, Case
from comparison.results import DIRECT, MIXED, MOONCAKE, NIXL, OURS, PLAIN, POLLING, TLS, Results, cpu, p50, p99, rate
from comparison.sections import ADJACENT, BATCHES, BY_ONE, ON_LINK, OPERATIONS, THREADS, batch, one
from tables import median_ratio

LOOPBACK, LINK = "loopback", "link"
NO_TIME = 0.01  # seconds of processor time a second that count as none


class Wanted(NamedTuple):
    """A measured figure and what it should reach. None where it was not measured, or nothing is wanted."""

    what: str
    measured: float | None
    wanted: float | None
    at_most: bool = False  # else at least
    direct: float | None = None  # the same with the same-host shortcut off

    def row(self) -> list[str]:
        wanted = "-" if self.wanted is None else f"{self.wanted:.2f} at {'most' if self.at_most else 'least'}"
        return [self.what, wanted, _text(self.measured), self.reached(self.measured), _text(self.direct)]

    def reached(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        if self.wanted is None:
            return "-"
        return "yes" if (value <= self.wanted if self.at_most else value >= self.wanted) else "no"


HEADER = ["compared", "wanted", "measured", "reached", "shortcut off"]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def wanted(results: Results, processors: int) -> list[Wanted]:
    """The rows of the sections that were run."""
    rows: list[Wanted] = []
    if LOOPBACK in results.cases:
        rows += [*loopback(results, processors), *one_request(results), *threads(results)]
    if LINK in results.cases:
        rows += over_link(results)
    for where, least in ((LOOPBACK, 1.3), (LINK, 2.0)):
        if where in results.cases:
            rows += mixed(results, where, least)
            rows += processor_time(results, where)
    if processors >= MANY and "lanes" in results.series:
        rows += lanes(results)
    for where in map(busy.where, busy.counts()):
        if where in results.cases:
            rows += beside_busy(results, where)
    if secured.ON_LOOPBACK in results.cases:
        rows += security(results, processors)
    if observed.WHERE in results.cases:
        rows += watched(results)
    if layouts.ON_LOOPBACK in results.cases:
        rows += reshaped(results)
    return [*rows, *beside_many(results), *resources(results)]


def loopback(results: Results, processors: int) -> Iterator[Wanted]:
    for op in OPERATIONS:
        for block, mooncake, nixl in ((4 * KIB, 6, 1.3), (64 * KIB, 2.5, 1), (MIB, 2, 1), (16 * MIB, 2, 1)):
            case = batch(op, block)
            more = processors >= MANY and block == MIB
            yield faster(results, LOOPBACK, case, MOONCAKE, 4 if more else mooncake)
            yield faster(results, LOOPBACK, case, NIXL, nixl)
            if block > 4 * KIB:
                yield faster(results, LOOPBACK, case, PLAIN[4], 0.9)
        if processors >= MANY:
            yield faster(results, LOOPBACK, Case(op, 16 * MIB, 8), MOONCAKE, 4)
    yield faster(results, LOOPBACK, ADJACENT, MOONCAKE, 12)
    yield faster(results, LOOPBACK, ADJACENT, NIXL, 1)


def one_request(results: Results) -> Iterator[Wanted]:
    for op in OPERATIONS:
        case = one(op, 4 * KIB)
        yield sooner(results, case, OURS, MOONCAKE, 0.6)
        yield sooner(results, case, OURS, NIXL, 1.3)
        yield sooner(results, case, POLLING, NIXL, 1)


def threads(results: Results) -> Iterator[Wanted]:
    many, single = (
        [results.values(LOOPBACK, case, name, rate) for name in (OURS, DIRECT)] for case in (THREADS, BY_ONE)
    )
    totals = [median_ratio(a, b) if a and b else None for a, b in zip(many, single)]
    yield Wanted(f"loopback, {THREADS} / 1 thread, {BY_ONE.blocks} blocks", totals[0], 1, direct=totals[1])
    found = [results.beside.get(name, []) for name in (OURS, DIRECT)]
    beside = [_median(each["beside_p99"] / each["alone_p50"] for each in rounds) for rounds in found]
    kept = [_median(each["beside_kept"] for each in rounds) for rounds in found]
    yield Wanted("loopback, a 4 KiB request: p99 beside bulk / p50 alone", beside[0], 5, True, beside[1])
    yield Wanted("loopback, bulk beside 4 KiB requests / alone", kept[0], 0.9, direct=kept[1])


def over_link(results: Results) -> Iterator[Wanted]:
    for op in OPERATIONS:
        for block in ON_LINK:
            case = batch(op, block)
            yield faster(results, LINK, case, MOONCAKE, 6 if block == 4 * KIB else 2.4)
            yield faster(results, LINK, case, NIXL, 1.5 if block == 4 * KIB else 1)
            if block > 4 * KIB:
                ours = results.median(LINK, case, OURS, rate)
                reference = ours / statistics.median(results.iperf) if ours and results.iperf else None
                yield Wanted(f"{LINK}, {case}: ours / iperf3", reference, 0.9)


def beside_busy(results: Results, where: str) -> Iterator[Wanted]:
    for case in busy.CASES:
        yield faster(results, where, case, MOONCAKE, 1.2)
        yield faster(results, where, case, NIXL, None)
        yield Wanted(f"{where}, {case}: one host / shortcut off", results.ratio(where, case, OURS, DIRECT), 1)
        if case.blocks == 1:
            base = results.best(where, case, MOONCAKE)
            ratios = [results.ratio(where, case, name, base, p99) for name in (OURS, DIRECT)]
            yield Wanted(f"{where}, {case}, p99: ours / Mooncake", ratios[0], 1, True, ratios[1])


def mixed(results: Results, where: str, least: float) -> Iterator[Wanted]:
    for op in OPERATIONS:
        case = batch(op, 64 * KIB)
        ratio = results.ratio(where, case, MIXED, results.best(where, case, MOONCAKE))
        yield Wanted(f"{where}, {case}: ours to Mooncake / Mooncake to Mooncake", ratio, least)


def processor_time(results: Results, where: str) -> Iterator[Wanted]:
    blocks = BATCHES if where == LOOPBACK else ON_LINK
    cases = [batch(op, block) for op in OPERATIONS for block in blocks]
    for family, most in ((MOONCAKE, 0.6), (NIXL, 1.0)):
        what = f"{where}, processor time per GB: ours / {family}, the worst of {len(cases)} cases"
        worst = [_worst(results, where, cases, name, family) for name in (OURS, DIRECT)]
        yield Wanted(what, worst[0], most, True, worst[1])


def _worst(results: Results, where: str, cases: Iterable[Case], name: str, family: str) -> float | None:
    ratios = [results.ratio(where, case, name, results.best(where, case, family), cpu) for case in cases]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def lanes(results: Results) -> Iterator[Wanted]:
    found = results.series["lanes"].get(OURS, {})
    ratio = median_ratio(found[4], found[1]) if 4 in found and 1 in found else None
    yield Wanted("loopback, WRITE 1 MiB x 32, shortcut off: 4 lanes / 1 lane", ratio, 2.5)


def security(results: Results, processors: int) -> Iterator[Wanted]:
    for where, least in ((secured.ON_LOOPBACK, None), (secured.ON_LINK, 0.6)):
        for case in secured.CASES:
            yield Wanted(f"{where}, {case}: with / without", results.ratio(where, case, TLS, DIRECT), least)
            if processors >= MANY and case.block == MIB and where == secured.ON_LOOPBACK:
                yield Wanted(f"{where}, {case}: GB/s", results.median(where, case, TLS, rate), 10)
    first = results.series.get(secured.FIRST, {})
    trips = [value for name in (TLS, DIRECT) for values in first.get(name, {}).values() for value in values]
    more = trips[0] - trips[1] if len(trips) == 2 else None
    yield Wanted("the first transfer with a peer, TLS: round trips more than without", more, 3, True)


def watched(results: Results) -> Iterator[Wanted]:
    """Rates with metrics, with traces, and with both. Other work on the machine moves single cases more than these."""
    mean = f"the mean of {len(observed.CASES)} cases"
    for on in (observed.METRICS, observed.TRACES, observed.BOTH):
        least = 0.99 if on == observed.BOTH else None
        for what, cases in (*((str(case), [case]) for case in observed.CASES), (mean, observed.CASES)):
            both = [list(_observed(results, name, on, cases)) for name in (OURS, DIRECT)]
            ratio, direct = (statistics.geometric_mean(found) if found else None for found in both)
            yield Wanted(f"loopback, {what}: {on} on / off", ratio, least if what == mean else None, direct=direct)


def _observed(results: Results, name: str, on: str, cases: Iterable[Case]) -> Iterator[float]:
    for case in cases:
        if (ratio := results.ratio(observed.WHERE, case, observed.on(name, on), name)) is not None:
            yield ratio


def beside_many(results: Results) -> Iterator[Wanted]:
    one, many = min(crowd.PEERS), max(crowd.PEERS)
    for bulk, short in itertools.product(crowd.BULKS, crowd.SHORT):
        found = [results.crowd.get(crowd.line(name, short, bulk), {}) for name in (OURS, DIRECT)]
        if any(found):
            ratios = [
                _median(b["p99"] / a["p99"] for a, b in zip(each.get(one, []), each.get(many, []))) for each in found
            ]
            what = f"loopback, {short}: p99 beside {many} peers that {bulk.operation} / beside one"
            yield Wanted(what, ratios[0], 2, True, ratios[1])


def reshaped(results: Results) -> Iterator[Wanted]:
    """Changes of layout. On one host nothing is wanted."""
    for where, least in ((layouts.ON_HOST, None), (layouts.ON_LOOPBACK, 0.5), (layouts.ON_LINK, 0.8)):
        for case in layouts.CASES if where in results.cases else ():
            ratio = results.ratio(where, case, layouts.PLAN, layouts.BLOCKS)
            yield Wanted(f"{where}, {case}: plan / plain blocks", ratio, least)
            if case.block == layouts.SHORT.block:
                ratio = results.ratio(where, case, layouts.PLAN, layouts.RANGES)
                yield Wanted(f"{where}, {case}: plan / its ranges as a list, which kvferry joins", ratio, None)
                if where != layouts.ON_HOST:
                    best = _fastest(results, where, case, [results.best(where, case, MOONCAKE), NIXL])
                    ratio = results.ratio(where, case, layouts.PLAN, best)
                    yield Wanted(f"{where}, {case}: plan / the best list of the others ({best})", ratio, 5)
    posting = results.series.get(layouts.POSTING, {}).get(layouts.POST, {}).get(layouts.SHORT.blocks)
    milliseconds = statistics.median(posting) / 1e3 if posting else None
    yield Wanted(f"ms to start a change of layout of {layouts.SHORT.blocks} runs from Python", milliseconds, 1, True)


def _fastest(results: Results, where: str, case: Case, names: Iterable[str]) -> str:
    return max(names, key=lambda name: results.median(where, case, name, rate) or 0)


def resources(results: Results) -> Iterator[Wanted]:
    if results.idle:
        yield Wanted("processor time of an idle pair, seconds a second", results.idle.get(OURS), NO_TIME, True)
    ours, mooncake = results.extra_memory(OURS), results.extra_memory(MOONCAKE)
    if results.memory:
        ratio = ours / mooncake if ours is not None and mooncake else None
        yield Wanted("memory of a process beside what is registered: ours / Mooncake", ratio, 1, True)


def faster(results: Results, where: str, case: Case, family: str, least: float | None) -> Wanted:
    """GB/s of ours, and of the best of Mooncake's settings, or of another engine."""
    base = results.best(where, case, family) if family == MOONCAKE else family
    ratios = [results.ratio(where, case, name, base) for name in (OURS, DIRECT)]
    return Wanted(f"{where}, {case}: ours / {family}", ratios[0], least, direct=ratios[1])


def sooner(results: Results, case: Case, name: str, family: str, most: float) -> Wanted:
    """The time that half of the calls take."""
    base = results.best(LOOPBACK, case, family, by_latency=True)
    ratios = [results.ratio(LOOPBACK, case, each, base, p50) for each in (name, DIRECT)]
    direct = ratios[1] if name == OURS else None
    return Wanted(f"{LOOPBACK}, {case}, p50: {name} / {family}", ratios[0], most, True, direct)
