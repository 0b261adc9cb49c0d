"""Changes of layout: a plan of kvferry's beside as many bytes in plain blocks, and the same runs as lists of ranges."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Callable

from comparison.case import Case, changing, plain, planned
from comparison.changes import CHANGES
from comparison.pairs import LOOPBACK, Measured, Mover, Network, Pair, Setup
from comparison.results import DIRECT, MOONCAKE, NIXL, OURS, SIXTEEN
from comparison.running import (
    PATIENT,
    SETUPS,
    Make,
    Plan,
    Run,
    attempt,
    dropping,
    in_rounds,
    linked,
    opened,
    pair,
    progress,
)

ON_HOST, ON_LOOPBACK, ON_LINK = "one host, layouts", "loopback, layouts", "link, layouts"  # where, in the results
PLAN, BLOCKS, RANGES = "ours, plan", "ours, plain blocks", "ours, a list of ranges"
DELAY = 250  # microseconds each way, as in the section "link"
WRITES = [changing("write", name) for name in CHANGES]
SHORT = WRITES[0]  # of the shortest runs
CASES = [*WRITES, changing("read", SHORT.change)]
POSTING, POST = "posting", "to start"  # a series, and one of its lines
TIMES = 21


class Instead(Pair):
    """A pair that moves another case for each."""

    def __init__(self, run: Run, setup: Setup, network: Network, size: int, instead: Callable[[Case], Case]) -> None:
        super().__init__(setup, run.machine.pythons, run.logs, network, size)
        self._instead = instead

    def move(self, case: Case, seconds: float) -> Measured:
        return super().move(self._instead(case), seconds)

    def check(self, case: Case) -> None:
        super().check(self._instead(case))


def layouts(run: Run) -> None:
    measured(run, ON_HOST, LOOPBACK, OURS, ())
    measured(run, ON_LOOPBACK, LOOPBACK, DIRECT, (MOONCAKE, SIXTEEN, NIXL))
    if run.machine.delaylink:
        with linked(run, DELAY) as network:
            measured(run, ON_LINK, network, DIRECT, (SIXTEEN, NIXL))


def measured(run: Run, where: str, network: Network, ours: str, others: tuple[str, ...]) -> None:
    progress(f"  {where}")
    making = dict(ways(run, network, ours, others))
    plan: Plan = {case: tuple(making) for case in CASES}
    with opened(run, making) as movers:
        in_rounds(run, where, plan, movers)
        if where == ON_LOOPBACK:
            for _ in run.rounds():
                post(run, movers)


def ways(run: Run, network: Network, ours: str, others: tuple[str, ...]) -> Iterator[tuple[str, Make[Mover]]]:
    """How to start what takes part."""
    size = max(max(case.span, plain(case).span) for case in CASES)
    for name, instead in ((PLAN, planned), (BLOCKS, plain)):
        yield name, functools.partial(Instead, run, SETUPS[ours]._replace(name=name), network, size, instead)
    yield RANGES, functools.partial(pair, run, SETUPS[ours]._replace(name=RANGES), network, size)
    for name in others:
        if run.can(SETUPS[name]):
            patient = SETUPS[name]._replace(settings={**PATIENT, **SETUPS[name].settings})
            yield name, functools.partial(pair, run, patient, network, size)


def post(run: Run, movers: dict[str, Mover]) -> None:
    """Microseconds to plan a change of layout, and to start its transfer from Python."""
    mover = movers.get(PLAN)
    if isinstance(mover, Pair):
        with attempt(run, f"{POSTING}, {PLAN}"), dropping(movers, PLAN), mover.awake():
            found = mover.initiator.ask("post", SHORT, TIMES)
            for what, taken in found.items():
                run.results.add_to_series(POSTING, what, SHORT.blocks, taken)
