"""What a process holds and uses, read from /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .peer import Peer

THREAD_SLACK = 6  # threads that a runtime may make for itself and keep
MEMORY_SLACK = 24 << 20  # bytes that an allocator may keep
SETTLE_LIMIT = 15.0  # seconds within which what a call left behind must be gone


@dataclass
class Holdings:
    descriptors: int
    threads: int
    resident: int  # bytes

    @classmethod
    def of(cls, pid: int, apart_from: int = 0) -> Holdings:
        """Look at a process; connections to the port `apart_from` do not count."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(
            descriptors=len(os.listdir(f"/proc/{pid}/fd")) - len(connections_to(apart_from)),
            threads=len(os.listdir(f"/proc/{pid}/task")),
            resident=pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def within(self, before: Holdings) -> bool:
        """Tell whether this is no more than what was held before."""
        return (
            self.descriptors <= before.descriptors
            and self.threads <= before.threads + THREAD_SLACK
            and self.resident <= before.resident + MEMORY_SLACK
        )


class LeakCheck:
    """Compares what a peer holds after something with what it held before. Warm the peer up first."""

    def __init__(self, peer: Peer, apart_from: int = 0) -> None:
        self._peer = peer
        self._apart_from = apart_from
        peer.ask("collect")
        self._before = self._now()

    def _now(self) -> Holdings:
        return Holdings.of(self._peer.pid, self._apart_from)

    def check(self) -> None:
        """Wait until nothing more is held than before; fail when that does not come."""
        self._peer.ask("collect")
        deadline = time.monotonic() + SETTLE_LIMIT
        while not (now := self._now()).within(self._before):
            assert time.monotonic() < deadline, f"{self._peer} held {self._before} and now holds {now}"
            time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """Return the processor time, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_use(pids: list[int], seconds: float) -> list[float]:
    """Return the processor time that each process uses within so many seconds."""
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    return [cpu_seconds(pid) - b for pid, b in zip(pids, before)]


ESTABLISHED = "01"


def connections_to(port: int) -> set[int]:
    """Return the remote ports of the established TCP connections that were made to a port of this machine."""
    found: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, remote, state = line.split()[:4]
            if state == ESTABLISHED and port_of(local) == port:
                found.add(port_of(remote))
    return found


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1], 16)


def until(condition: Callable[[], bool], limit: float, what: str) -> None:
    """Wait until the condition holds; fail the test when it does not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        time.sleep(0.02)
