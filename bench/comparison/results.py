"""What was measured, in rounds, and what follows from it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Callable

from comparison.case import Case
from comparison.pairs import Measured
from tables import median_ratio

OURS = "ours"
DIRECT = "ours, no shortcut"  # between processes of one host: as between two
TLS = "ours, TLS"  # likewise, with a cluster secret
POLLING = "ours, polling"
MOONCAKE = "Mooncake"  # by default; its other settings begin with the same word
UNPOOLED = "Mooncake, unpooled"
SIXTEEN = "Mooncake, 16 lanes"
MIXED = "ours to Mooncake"
NIXL = "NIXL"
PLAIN = {lanes: f"plain C, {lanes} lane{'s' if lanes > 1 else ''}" for lanes in (1, 2, 4)}
IPERF = "iperf3"

Quantity = Callable[[Measured], float]


def rate(measured: Measured) -> float:
    """GB/s, of 10^9 bytes."""
    return measured.rate


def p50(measured: Measured) -> float:
    """Microseconds."""
    return measured.p50


def p99(measured: Measured) -> float:
    """Microseconds."""
    return measured.p99


def cpu(measured: Measured) -> float:
    """Seconds of processor time for a GB, of both ends."""
    return measured.cpu


@dataclasses.dataclass
class Results:
    """All of it. Lists have a value for each round."""

    cases: dict[str, dict[Case, dict[str, list[Measured]]]] = dataclasses.field(default_factory=dict)
    """By the network, the case, and the name of the engine."""
    series: dict[str, dict[str, dict[float, list[float]]]] = dataclasses.field(default_factory=dict)
    """By what it is, the name of the line, and the place on the axis."""
    beside: dict[str, list[dict[str, float]]] = dataclasses.field(default_factory=dict)
    """Small requests alone, beside bulk, and beside bulk with a pause between two (alone_, beside_, spaced_): p50, p99
    in µs, rate in a second, and kept, the part of its rate that bulk keeps."""
    crowd: dict[str, dict[int, list[dict[str, float]]]] = dataclasses.field(default_factory=dict)
    """Short requests beside so many peers that move long blocks, by the engine and both operations: p50, p99 in µs,
    requests in a second, the rate of the peers in GB/s, and kept, the part of it that they have without short ones."""
    idle: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds of processor time a second."""
    memory: dict[str, dict[str, dict[str, int]]] = dataclasses.field(default_factory=dict)
    """Bytes by engine and side: peak, bare, registered."""
    iperf: list[float] = dataclasses.field(default_factory=list)
    """GB/s over the link."""
    checked: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """By the network: engine and case of which every byte was compared."""
    failures: list[str] = dataclasses.field(default_factory=list)
    peer_failures: list[str] = dataclasses.field(default_factory=list)
    """Those of others' processes, which is no fault of ours."""
    missing: list[str] = dataclasses.field(default_factory=list)
    """What could not be run, why, and how to get it."""
    seconds: float = 0.0
    """What all of it took."""

    def add(self, network: str, case: Case, name: str, measured: Measured) -> None:
        self.cases.setdefault(network, {}).setdefault(case, {}).setdefault(name, []).append(measured)

    def add_to_series(self, what: str, line: str, x: float, value: float) -> None:
        self.series.setdefault(what, {}).setdefault(line, {}).setdefault(x, []).append(value)

    def values(self, network: str, case: Case, name: str, quantity: Quantity) -> list[float]:
        found = self.cases.get(network, {}).get(case, {}).get(name, [])
        return [quantity(measured) for measured in found]

    def median(self, network: str, case: Case, name: str, quantity: Quantity) -> float | None:
        """None where it was not measured."""
        values = self.values(network, case, name, quantity)
        return statistics.median(values) if values else None

    def ratio(self, network: str, case: Case, name: str, base: str, quantity: Quantity = rate) -> float | None:
        """The median of the rounds' ratios."""
        values, others = (self.values(network, case, each, quantity) for each in (name, base))
        return median_ratio(values, others) if values and others else None

    def best(self, network: str, case: Case, family: str, by_latency: bool = False) -> str:
        """The name of the best of the engines whose name begins like that: Mooncake's settings, or lanes."""
        quantity, sign = (p50, -1) if by_latency else (rate, 1)
        names = [name for name in self.cases.get(network, {}).get(case, {}) if name.split(",")[0] == family]
        scores = {name: sign * (self.median(network, case, name, quantity) or 0) for name in names}
        return max(scores, key=lambda name: scores[name]) if scores else family

    def extra_memory(self, name: str) -> float | None:
        """MiB: the larger one of both sides' peaks, beyond registered memory; with Python and the engine's library."""
        sides = self.memory.get(name, {}).values()
        return max((each["peak"] - each["registered"]) / (1 << 20) for each in sides) if sides else None


def medians(series: dict[float, list[float]]) -> dict[float, float]:
    return {x: statistics.median(values) for x, values in series.items()}


def median_of_ratios(found: Sequence[dict[str, float]], part: str, whole: str) -> float | None:
    return statistics.median(each[part] / each[whole] for each in found) if found else None
