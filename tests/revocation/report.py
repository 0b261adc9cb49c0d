"""What a run tells: times and counts, and whether it did enough for its silence to mean anything."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from .world import LIVING, SLOW, STOPPED, TRICKLES, UNUSED, Result

WHAT = {
    LIVING: "the peer lives",
    SLOW: "the peer is stopped for moments",
    STOPPED: "the peer is stopped",
    TRICKLES[False]: "the peer sends runs little by little",
    TRICKLES[True]: "the peer sends one run little by little",
    UNUSED: "nobody uses the offer",
}
LEAST = {  # of a hundred rounds
    "rounds with bytes that had come": 1,
    "transfers revoked": 1,
    "transfers done": 1,
    "pages offered to another peer at once": 1,
}
FORCE = 50.0  # ms after which the owner ends the connections that still use an offer
LONG_ENOUGH = 200  # rounds from which on each must have happened


def joined(results: Iterable[Result]) -> Result:
    counts: collections.Counter[str] = collections.Counter()
    times: dict[str, list[float]] = {}
    for result in results:
        counts.update(result.counts)
        for kind, found in result.times.items():
            times.setdefault(kind, []).extend(found)
    return Result(counts=dict(counts), times=times)


def quantile(times: Sequence[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(part * len(times)))]


def table(result: Result) -> str:
    """How long revoke took, in ms, by what the peer does."""
    lines = [f"{'revoke, ms':<46}{'rounds':>8}{'p50':>9}{'p99':>9}{'longest':>9}{'by force':>10}"]
    for kind, what in WHAT.items():
        times = result.times.get(kind)
        if times:
            figures = "".join(f"{x:>9.2f}" for x in (quantile(times, 0.5), quantile(times, 0.99), max(times)))
            lines.append(f"{what:<46}{len(times):>8}{figures}{sum(t >= FORCE for t in times):>10}")
    return "\n".join(lines)


def summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def too_little(result: Result, rounds: int) -> list[str]:
    """What was done too rarely."""
    if rounds < LONG_ENOUGH:
        return []
    return [what for what, least in LEAST.items() if result.counts.get(what, 0) < least * rounds / 100]
