"""How things are measured: processes are started, bytes are checked, and then there are rounds.

All engines run one case before any runs the next one, so that whatever else the machine does hits all of them. An
engine that fails is told, and left out from then on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, TypeVar

import link
from comparison.case import Case
from comparison.machine import Machine
from comparison.pairs import EndError, Mover, Network, Pair, PeerError, PlainC, Setup
from comparison.results import (
    DIRECT,
    MIXED,
    MOONCAKE,
    NIXL,
    OURS,
    PLAIN,
    POLLING,
    SIXTEEN,
    UNPOOLED,
    Results,
)

# Both ends call UCX all the time; segments of 256 KiB are faster than its default ones.
NIXL_SETTINGS = {
    "UCX_TLS": "tcp",
    "UCX_TCP_TX_SEG_SIZE": "256K",
    "UCX_TCP_RX_SEG_SIZE": "256K",
    "NIXL_LOG_LEVEL": "ERROR",
}
NO_SHORTCUT = {"KVFERRY_SAME_HOST": "0"}  # as between two machines
# Mooncake refuses thousands of requests at once by default.
PATIENT = {"MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "65535", "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": "65535"}
LANES = "MC_TCP_LANES_PER_PEER"
SETUPS = {
    setup.name: setup
    for setup in (
        Setup(OURS, "ours", "ours"),
        Setup(DIRECT, "ours", "ours", NO_SHORTCUT),
        Setup(POLLING, "ours", "ours", {"KVFERRY_POLL_US": "1000000"}),
        Setup(MOONCAKE, "mooncake", "mooncake"),
        Setup(UNPOOLED, "mooncake", "mooncake", {"MC_TCP_ENABLE_CONNECTION_POOL": "0"}),
        Setup(SIXTEEN, "mooncake", "mooncake", {LANES: "16"}),
        Setup(MIXED, "ours", "mooncake"),
        Setup(NIXL, "nixl", "nixl", NIXL_SETTINGS),
    )
}

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Make = Callable[[], Item]
Plan = dict[Case, Sequence[str]]
"""Which engines run a case, by their names."""


class Run(NamedTuple):
    """A run of the comparison."""

    machine: Machine
    options: argparse.Namespace
    results: Results
    logs: Path

    def can(self, setup: Setup) -> bool:
        return setup.kinds <= set(self.machine.pythons)

    def rounds(self) -> Iterator[int]:
        for number in range(self.options.rounds):
            progress(f"  round {number + 1} of {self.options.rounds}")
            yield number


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def attempt(run: Run, what: str) -> Iterator[None]:
    """Tell a failure within the block, and go on behind it."""
    try:
        yield
    except (EndError, OSError) as e:
        failures = run.results.peer_failures if isinstance(e, PeerError) else run.results.failures
        failures.append(f"{what}: {e}")
        progress(f"FAILED: {what}: {e}")


@contextlib.contextmanager
def linked(run: Run, delay: int) -> Iterator[Network]:
    """A link with so many microseconds of delay each way, beside its own."""
    assert run.machine.delaylink
    with link.delayed(run.machine.delaylink, delay) as keepers:
        yield Network(*link.ADDRESSES, link.INTERFACE, keepers)


def pair(run: Run, setup: Setup, network: Network, size: int) -> Pair:
    return Pair(setup, run.machine.pythons, run.logs, network, size)


def makers(run: Run, names: Sequence[str], network: Network, size: int) -> dict[str, Make[Mover]]:
    """How to start those of the engines that this machine has, with so many bytes of memory at each end."""
    found: dict[str, Make[Mover]] = {}
    for name in names:
        if name in SETUPS and run.can(SETUPS[name]):
            found[name] = functools.partial(pair, run, SETUPS[name], network, size)
    if run.machine.rawtcp:
        for lanes, name in PLAIN.items():
            if name in names:
                found[name] = functools.partial(PlainC, run.machine.rawtcp, lanes, network, size)
    return found


@contextlib.contextmanager
def opened(run: Run, making: Mapping[Key, Make[Item]]) -> Iterator[dict[Key, Item]]:
    """Those that can be started, until the end of the block."""
    with contextlib.ExitStack() as stack:
        movers: dict[Key, Item] = {}
        for key, make in making.items():
            with attempt(run, f"{key}, the start"):
                movers[key] = mover = make()
                stack.callback(mover.close)  # type: ignore[attr-defined]
        yield movers


def in_rounds(run: Run, where: str, plan: Plan, movers: dict[str, Mover]) -> None:
    """Every case of a plan with each of its engines: checked once, then measured in each round."""
    progress(f"  {len(plan)} cases, each checked byte for byte")
    for case, name in steps(plan, movers):
        check(run, where, case, name, movers)
    for _ in run.rounds():
        for case, name in steps(plan, movers):
            with attempt(run, f"{where}, {case}, {name}"), dropping(movers, name):
                run.results.add(where, case, name, movers[name].move(case, run.options.seconds))


def makers_of(run: Run, plan: Plan, network: Network) -> dict[str, Make[Mover]]:
    """How to start what a plan names."""
    names = list(dict.fromkeys(name for names in plan.values() for name in names))
    return makers(run, names, network, max(case.span * case.threads for case in plan))


def steps(plan: Plan, movers: Mapping[str, Mover]) -> Iterator[tuple[Case, str]]:
    for case, names in plan.items():
        yield from ((case, name) for name in names if name in movers)


def check(run: Run, where: str, case: Case, name: str, movers: dict[str, Mover]) -> None:
    mover = movers[name]
    if isinstance(mover, Pair):
        with attempt(run, f"{where}, {case}, {name}"), dropping(movers, name):
            mover.check(case)
            run.results.checked.setdefault(where, []).append(f"{name}: {case}")


@contextlib.contextmanager
def dropping(movers: dict[Key, Item], key: Key) -> Iterator[None]:
    """Drop an engine that fails within the block."""
    try:
        yield
    except (EndError, OSError):
        del movers[key]
        raise


def series_in_rounds(run: Run, what: str, case: Case, movers: dict[tuple[str, float], Mover]) -> None:
    """One case with engines that differ in something, as GB/s: keys are the name of the line and the place on it."""
    for (name, x), mover in list(movers.items()):
        if isinstance(mover, Pair):
            with attempt(run, f"{what}, {name} at {x:g}"), dropping(movers, (name, x)):
                mover.check(case)
    for _ in run.rounds():
        for (name, x), mover in list(movers.items()):
            with attempt(run, f"{what}, {name} at {x:g}"), dropping(movers, (name, x)):
                run.results.add_to_series(what, name, x, mover.move(case, run.options.seconds).rate)
