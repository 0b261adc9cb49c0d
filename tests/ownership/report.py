"""What a run tells: what was found, what it did, and whether that was enough for its silence to mean anything."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from .model import Violation
from .plan import FAULTS, OF_CALLS, World

Counts = collections.Counter[str]

# What a run must have done of each kind per second that its worlds were to last at least, or else it proves nothing.
LEAST = {
    "writes acknowledged": 2.0,
    "writes failed": 0.2,
    "reads acknowledged": 1.0,
    "reads failed": 0.1,
    "words of memory": 100_000.0,
    "words read": 10_000.0,
    "words at rest": 10_000.0,
    "engines": 0.2,
}
# What each fault that was asked for is counted as, and how often a second it must have happened.
LEAST_OF_FAULTS = {
    "giveup": ("calls by discard failed", 0.05),
    "retract": ("buffers unregistered during a call", 0.05),
    "withdraw": ("regions taken back", 0.2),
    "stale": ("calls by names of engines that are gone", 0.02),
    "reuse": ("process ids used again", 0.02),
}
LEAST_OF_OTHERS = 0.03
MOST = 12  # lines of a list
LONG_ENOUGH = 20.0  # seconds of worlds in which something may happen, from which on it must


def violation(found: Violation, seed: int, world: World, logs: str) -> str:
    """A violation, as it is printed."""
    lines = ["", f"VIOLATION of {found}", f"  seed {seed}, {world}, logs in {logs}", *environments(world)]
    for title, items in (("found", found.found), ("allowed there", found.allowed)):
        lines += [
            f"  {title}:",
            *(f"    {item}" for item in (*items[:MOST], *["..."] * (len(items) > MOST)) or ("nothing",)),
        ]
    lines += ["  operations that concern the place:", *(f"    {each}" for each in found.operations or ("none",))]
    return "\n".join(lines)


def environments(world: World) -> list[str]:
    """The settings of a world's engines: those that all have, and those that each has for itself."""
    settings = [set(position.settings.items()) for position in world.positions]
    common = set.intersection(*settings)
    lines = [f"  every slot: {words(common)}"]
    for index, position in enumerate(world.positions):
        private = ", may not be read by others" if position.private else ""
        places = ", ".join(sorted(set(position.places)))
        lines.append(f"  slot {index}: {position.kind}{private}, on {places}; {words(settings[index] - common)}")
    return lines


def words(settings: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(settings))


def summary(counts: Counts) -> str:
    width = max(map(len, counts), default=0)
    return "\n".join(f"  {what:{width}} {counts[what]:>12,}" for what in sorted(counts))


def too_little(counts: Counts, worlds: Sequence[tuple[World, float]]) -> list[str]:
    """What was done too little for the run to mean anything, by what can be done in these worlds of so many seconds."""
    seconds = sum(lasted for _, lasted in worlds)
    wanted = {what: rate * seconds for what, rate in LEAST.items()}
    for fault in FAULTS:
        possible = sum(lasted for world, lasted in worlds if fault in world.faults)
        what, rate = LEAST_OF_FAULTS.get(fault, (f"fault {fault}", LEAST_OF_OTHERS))
        if possible >= LONG_ENOUGH:
            wanted[what] = max(1.0, rate * possible)
    return [
        f"{what}: {counts[what]:,}, and not {least:,.1f} at least"
        for what, least in wanted.items()
        if counts[what] < least
    ]


assert set(OF_CALLS) <= set(FAULTS)
