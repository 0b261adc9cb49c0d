"""Transfers beside processes that only compute, as engine loops and tokenizers do on inference hosts."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from comparison.case import KIB, MANY, MIB, Case
from comparison.pairs import LOOPBACK
from comparison.results import DIRECT, MOONCAKE, NIXL, OURS, UNPOOLED
from comparison.running import Plan, Run, in_rounds, makers_of, opened, progress

CASES = [
    Case("write", 4 * KIB, 1),
    Case("read", 4 * KIB, 1),
    Case("write", 4 * KIB, 64),
    Case("write", 64 * KIB, 64),
    Case("write", MIB, 32),
]
ENGINES = (OURS, DIRECT, MOONCAKE, UNPOOLED, NIXL)
COUNTS = (2, 4)  # processes beside the two ends; on a large machine there is one for each processor instead
LONGER = 3  # times as long as other sections: a call may wait for whole time slices
COMPUTE = "while True: pass"
PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def counts() -> tuple[int, ...]:
    """How many processes compute, in one measurement after the other."""
    processors = os.cpu_count() or 1
    return (processors,) if processors >= MANY else COUNTS


def where(count: int) -> str:
    """What results call a machine with so many processes that compute."""
    return f"loopback, {count} busy"


def busy(run: Run) -> None:
    plan: Plan = dict.fromkeys(CASES, ENGINES)
    settings = {**vars(run.options), "seconds": LONGER * run.options.seconds}
    longer = run._replace(options=argparse.Namespace(**settings))
    for count in counts():
        progress(f"  beside {count} processes that compute")
        with opened(run, makers_of(run, plan, LOOPBACK)) as movers, computing(count):
            in_rounds(longer, where(count), plan, movers)


@contextlib.contextmanager
def computing(count: int) -> Iterator[None]:
    """So many processes that compute, until the end of the block, or of this process."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            command = [sys.executable, "-S", "-c", COMPUTE]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
