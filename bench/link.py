"""A link between processes of this machine that is slower than the loopback interface, and costs the processors less.

It is the loopback interface of a network namespace of its own, behind a token bucket. Needs root, and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000  # of sched.h

# The queue holds more than connections have under way, so that nothing is dropped.
SCRIPT = """
ip link set lo up && tc qdisc add dev lo root tbf rate {gigabits}gbit burst 1mb limit 64mb && echo up && exec cat
"""


class LinkError(Exception):
    """There can be no link; the text says why."""


@contextlib.contextmanager
def made(gigabits: int) -> Iterator[int]:
    """A link of so many Gbit/s, for the time of the block. It is known by the id of the process that keeps it."""
    command = ["unshare", "--net", "sh", "-c", SCRIPT.format(gigabits=gigabits)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdin and keeper.stdout and keeper.stderr
        if keeper.stdout.readline() != "up\n":
            raise LinkError(" ".join(keeper.stderr.read().split()))
        try:
            yield keeper.pid
        finally:
            keeper.stdin.close()


def join(keeper: int) -> None:
    """Put this process, which has one thread as yet, behind the link."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{keeper}/ns/net", "rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"the link of process {keeper} cannot be used")
