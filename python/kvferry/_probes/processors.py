"""Processors, and how busy they are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from kvferry._probes import read_text
from kvferry._probes.limits import cgroup

NODES = Path("/sys/devices/system/node")
TASKS = Path("/proc/self/task")


class Processors(NamedTuple):
    """What this process may use."""

    allowed: tuple[int, ...]  # numbers of processors
    online: int  # of the machine
    quota: float | None  # processors' worth of time that the container may use; None for no limit
    nodes: tuple[int, ...]  # memory nodes (NUMA) of the machine


def processors() -> Processors:
    """The processors of this machine and process."""
    nodes = sorted(int(entry.name[4:]) for entry in NODES.glob("node[0-9]*"))
    return Processors(tuple(sorted(os.sched_getaffinity(0))), os.cpu_count() or 1, quota(), tuple(nodes))


def quota() -> float | None:
    """The container's limit in processors; None for none."""
    group = cgroup("cpu")
    text = None if group is None else read_text(group / "cpu.max")
    if text is None or text.startswith("max"):
        return None
    allowed, _, period = text.partition(" ")
    return int(allowed) / int(period) if period.isdecimal() else None


class Times(NamedTuple):
    """How much time has passed at one moment, in seconds."""

    wall: float
    own: float  # of processors, used by this process
    busy: float  # of the allowed processors, used by anybody
    idle: float  # of the allowed processors
    waited: float  # that threads of this process were ready to run, and had no processor

    def since(self, before: Times) -> Times:
        """The time between two moments."""
        return Times(*(now - then for now, then in zip(self, before)))

    @property
    def load(self) -> float:
        """How busy the allowed processors were: 0 to 1."""
        return self.busy / max(self.busy + self.idle, 1e-9)

    @property
    def starved(self) -> float:
        """How many threads of this process were ready to run and had no processor, in the mean."""
        return self.waited / max(self.wall, 1e-9)

    @property
    def others(self) -> float:
        """How busy other processes, and the kernel for its own ends, kept them: 0 to 1."""
        return max(self.busy - self.own, 0) / max(self.busy + self.idle, 1e-9)


def times() -> Times:
    """The times now."""
    tick = os.sysconf("SC_CLK_TCK")
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = idle = 0
    for line in (read_text("/proc/stat") or "").splitlines():
        name, *fields = line.split()
        if name in allowed:
            values = [int(field) for field in fields[:8]]  # the rest, guests, is in the first two
            idle += values[3] + values[4]
            busy += sum(values) - values[3] - values[4]
    return Times(time.monotonic(), time.process_time(), busy / tick, idle / tick, waited())


def waited() -> float:
    """How long the threads of this process were ready to run and had no processor, in seconds; 0 where the kernel does
    not say."""
    nanoseconds = 0
    for task in TASKS.iterdir():
        fields = (read_text(task / "schedstat") or "").split()
        nanoseconds += int(fields[1]) if len(fields) == 3 else 0
    return nanoseconds / 1e9
