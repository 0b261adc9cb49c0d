"""What was measured. Rates are in GB/s, of 10^9 bytes; sizes in bytes."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from cases import Case, Pair, work
from nodes import Measured
from staging import Rates
from tables import median_ratio


class Rounds:
    """Each case in each round."""

    def __init__(self, measured: dict[Case, list[Measured]]) -> None:
        self.measured = measured

    def rate(self, pair: Pair, operation: str, block: int) -> float:
        """The median of the rounds."""
        return statistics.median(self._rates(pair, operation, block))

    def ratio(self, pair: Pair, base: Pair, operation: str, block: int) -> float:
        """How a pair compares with another one: the median of the rounds' ratios."""
        return median_ratio(self._rates(pair, operation, block), self._rates(base, operation, block))

    def cpu(self, pair: Pair, operation: str, block: int) -> float:
        """Seconds of processor time for a GB, of both processes."""
        measured = self.measured[Case(pair, work(operation, block))]
        return statistics.median(each.cpu / each.bytes for each in measured) * 1e9

    def _rates(self, pair: Pair, operation: str, block: int) -> list[float]:
        return [measured.rate for measured in self.measured[Case(pair, work(operation, block))]]


class Pipelining(NamedTuple):
    """NPU to host, each round, with copies from the NPU at copy_rate."""

    copy_rate: float
    pipelined: list[float]
    copied_first: list[float]  # by the program, which then sent the copy


class Peak(NamedTuple):
    """The most memory that a process ever had."""

    host: int  # one that moved host memory
    npu: int  # one that moved as much memory of a simulated NPU, which counts, too
    pinned: int  # page-locked, of the latter
    device: int  # memory of the simulated NPU beyond what was registered


class Figures(NamedTuple):
    """All of it."""

    rounds: Rounds  # over the loopback interface
    copy_cpu: float  # seconds of processor time for a GB that the simulator copies; 0 for real NPUs
    pipelining: Pipelining | None
    over_link: Rounds | None
    peaks: dict[str, Peak]  # by role
    staging: Rates
