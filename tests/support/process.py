"""What a process holds and uses, read from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .peer import Peer

THREAD_SLACK = 6  # threads that a runtime may make for itself and keep
MEMORY_SLACK = 24 << 20  # bytes that an allocator may keep
SETTLE_LIMIT = 200.0  # seconds within which what a call left behind is gone; Go looks for garbage every two minutes


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

    def within(self, before: Holdings, kept: int) -> bool:
        """Tell whether this is no more than what was held before and `kept` bytes of memory."""
        return (
            self.descriptors <= before.descriptors
            and self.threads <= before.threads + THREAD_SLACK
            and self.resident <= before.resident + MEMORY_SLACK + kept
        )


class LeakCheck:
    """Compares what a peer holds after something with what it held before. Warm the peer up first.

    Connections to the port `apart_from` do not count, nor do `kept` bytes of memory.
    """

    def __init__(self, peer: Peer, apart_from: int = 0, kept: int = 0) -> None:
        self._peer = peer
        self._apart_from = apart_from
        self._kept = kept
        peer.ask("collect")
        self._before = self._now()

    def _now(self) -> Holdings:
        return Holdings.of(self._peer.pid, self._apart_from)

    def check(self) -> None:
        """Wait until nothing more is held than before; fail when that does not come."""
        self._peer.ask("collect")
        deadline = time.monotonic() + SETTLE_LIMIT
        while not (now := self._now()).within(self._before, self._kept):
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
UNIX_CONNECTED = "03"


def established() -> list[list[str]]:
    """Return the lines, in fields, of the established TCP connections of this machine: one for each end here."""
    tables = (Path(table).read_text() for table in ("/proc/net/tcp", "/proc/net/tcp6"))
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [line for line in lines if line[3] == ESTABLISHED]


def connections_to(port: int) -> set[int]:
    """Return the remote ports of the established TCP connections that were made to a port of this machine."""
    return {port_of(line[2]) for line in established() if port_of(line[1]) == port}


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1], 16)


def same_host_connections() -> list[list[str]]:
    """Return the lines, in fields, of the connections between our engines of this machine that are no TCP ones."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [line for line in lines if line[5] == UNIX_CONNECTED and "@kvferry-" in line[-1]]


def connections_of(pid: int) -> set[str]:
    """Return the sockets of a process that are connections, by TCP or between our engines on one host."""
    inodes = [line[9] for line in established()] + [line[6] for line in same_host_connections()]
    return sockets_of(pid) & {f"socket:[{inode}]" for inode in inodes}


def sockets_of(pid: int) -> set[str]:
    """Return the sockets that a process holds. No two have the same name, however long ago one was closed."""
    found: set[str] = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return {name for name in found if name.startswith("socket:")}


@contextlib.contextmanager
def stopped(peer: Peer) -> Iterator[None]:
    """Stop every thread of a process, as a debugger does. At the end it goes on, unless it was killed."""
    try:
        stop(peer.pid)
        yield
    finally:
        if peer.process.poll() is None:
            os.kill(peer.pid, signal.SIGCONT)


def stop(pid: int) -> None:
    """Stop every thread of a process. The signal alone does that only when each thread has seen it: on a busy machine
    they serve another transfer meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: states_of(pid) == {"T"}, SETTLE_LIMIT, f"process {pid} is stopped")


def states_of(pid: int) -> set[str]:
    """Return what the threads of a process are doing, in the letters of proc(5)."""
    found: set[str] = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since
            found.add(Path(f"/proc/{pid}/task/{thread}/stat").read_text().rsplit(")", 1)[1].split()[0])
    return found


def soon(condition: Callable[[], bool], limit: float) -> bool:
    """Wait until the condition holds, and tell whether it did within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def until(condition: Callable[[], bool], limit: float, what: str) -> None:
    """Wait until the condition holds; fail the test when it does not within `limit` seconds."""
    assert soon(condition, limit), f"not within {limit:g} s: {what}"
