"""Links between processes of this machine that are slower than the loopback interface. They need root.

One is the loopback interface of a network namespace of its own, behind a token bucket, which costs the processors less.
Needs iproute2. The other joins two namespaces, with a round trip that takes its time.

A namespace lasts as long as the process that keeps it, and is known by that process's id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

NAMESPACES = {"mnt": 0x00020000, "net": 0x40000000}  # CLONE_NEWNS and CLONE_NEWNET of sched.h

# The queue holds more than connections have under way, so that nothing is dropped.
LIMITED = "ip link set lo up && tc qdisc add dev lo root tbf rate {gigabits}gbit burst 1mb limit 64mb && "
KEEP = "echo up && exec cat"
ISOLATED = "mount -t sysfs sysfs /sys && " + KEEP  # programs look there for the interfaces that there are

ADDRESSES = ("10.77.0.1", "10.77.0.2")  # of the two ends of a link with a delay
INTERFACE = "dl0"  # at both of them


class LinkError(Exception):
    """There can be no link; the text says why."""


@contextlib.contextmanager
def made(gigabits: int) -> Iterator[int]:
    """A link of so many Gbit/s within one namespace, for the time of the block."""
    with _running(["unshare", "--net", "sh", "-c", LIMITED.format(gigabits=gigabits) + KEEP]) as keeper:
        yield keeper.pid


@contextlib.contextmanager
def delayed(program: Path, microseconds: int) -> Iterator[tuple[int, int]]:
    """A link between two namespaces with so much delay each way beside its own, for the time of the block. program is
    comparison/delaylink.c."""
    with joined(program, microseconds) as link:
        yield link.here, link.there


class Joined(NamedTuple):
    """Two namespaces with a link between them, and the program that is the link."""

    here: int
    there: int
    program: subprocess.Popen[str]

    def close_port(self, port: int) -> None:
        """Lose what is sent to a port of TCP."""
        self._tell(port)

    def lose_longer(self, size: int) -> None:
        """Lose packets of more bytes, and say nothing."""
        self._tell(-size)

    def _tell(self, number: int) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(f"{number}\n")
        self.program.stdin.flush()


@contextlib.contextmanager
def joined(program: Path, microseconds: int, megabits: int = 0, lose_one_in: int = 0) -> Iterator[Joined]:
    """A link as delayed() has it, with so many Mbit/s, of which one of so many long packets is lost. 0 is no limit, and
    no loss."""
    isolated = ["unshare", "--net", "--mount", "sh", "-c", ISOLATED]
    with _running(isolated) as here, _running(isolated) as there:
        ends = zip((here.pid, there.pid), ADDRESSES)
        arguments = [text for keeper, address in ends for text in (f"/proc/{keeper}/ns/net", address)]
        with _running([str(program), *arguments, *map(str, (microseconds, megabits, lose_one_in))]) as link:
            yield Joined(here.pid, there.pid, link)


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that says when it is up, until the end of the block."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        if process.stdout.readline() != "up\n":
            raise LinkError(" ".join(process.stderr.read().split()))
        try:
            yield process
        finally:
            process.stdin.close()


def join(keeper: int) -> None:
    """Put this process, which has one thread as yet, in the namespaces of that one."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.getcwd()
    for name, kind in NAMESPACES.items():
        theirs = f"/proc/{keeper}/ns/{name}"
        if os.readlink(theirs) == os.readlink(f"/proc/self/ns/{name}"):
            continue
        with open(theirs, "rb") as namespace:
            if libc.setns(namespace.fileno(), kind) != 0:
                raise OSError(ctypes.get_errno(), f"the link of process {keeper} cannot be used")
    os.chdir(folder)  # another mount namespace begins at its root
