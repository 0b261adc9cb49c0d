#!/usr/bin/env python3
"""What the kernel's ways to send and receive cost a plain C program: calls that block, poll, MSG_ZEROCOPY, io_uring.

    ways.py [--rounds N] [--seconds S] [--link] [--buffer BYTES] [--output FOLDER]

comparison/rawtcp.c moves the same scattered blocks in each way, over loopback or over the link with a round trip of
0.65 ms that `make bench` uses. A round takes all ways one after the other, forth and back. The table has medians: GB/s,
seconds of processor time and system calls for a GB at both ends together, and of the sends without a copy the part that
the kernel copied all the same. A way hands over 1 MiB at a time, as kvferry does; "plain" and "uring, one" hand over
one request. A way that this machine does not allow is told, and left out.

Between two machines run the program itself: it is in the folder for files, and its source says how.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import link
from comparison import machine
from comparison.case import KIB, MIB
from comparison.pairs import LOOPBACK, Network
from tables import table

CASES = ((64 * KIB, 64), (MIB, 32))
LANES = (1, 4)
DELAY = 250  # microseconds each way
WAYS = {
    "plain": ("plain", False),
    "poll": ("poll", True),
    "zerocopy": ("zerocopy", True),
    "uring, one": ("uring", False),
    "uring": ("uring", True),
    "uring-zerocopy": ("uring-zerocopy", True),
}


class Case(NamedTuple):
    operation: str
    block: int
    blocks: int
    lanes: int

    def __str__(self) -> str:
        lanes = "1 lane" if self.lanes == 1 else f"{self.lanes} lanes"
        return f"{self.operation.upper()} {self.block // KIB} KiB x {self.blocks}, {lanes}"


class Figures(NamedTuple):
    rate: float  # GB/s
    cpu: float  # seconds for a GB
    calls: float  # for a GB
    copied: float  # part of what was sent without a copy; 0 if nothing was


def main() -> int:
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    program = machine.built("rawtcp", options.output, missing)
    if program is None:
        print(*missing, file=sys.stderr)
        return 1
    operations = ("write", "read")
    cases = [Case(op, *blocks, lanes) for op, blocks, lanes in itertools.product(operations, CASES, LANES)]
    found: dict[tuple[Case, str], list[Figures]] = {}
    with network(options) as between:
        ways = [name for name in WAYS if measure(program, between, cases[0], name, options)]
        for turn in range(options.rounds):
            for case, name in itertools.product(cases, ways[:: -1 if turn % 2 else 1]):
                figures = measure(program, between, case, name, options)
                if figures:
                    found.setdefault((case, name), []).append(figures)
    print(table(("case", "way", "GB/s", "s for a GB", "calls for a GB", "copied"), list(rows(found))))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the kernel's ways to send and receive.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.15, metavar="S", help="of each run (%(default)s)")
    parser.add_argument("--link", action="store_true", help="over a round trip of 0.65 ms; needs root")
    parser.add_argument("--buffer", type=int, metavar="BYTES", help="that may wait to be sent (loopback: 393216)")
    parser.add_argument("--output", type=Path, default="build/bench", metavar="FOLDER", help="for files (%(default)s)")
    options = parser.parse_args()
    if options.buffer is None:
        options.buffer = 0 if options.link else 384 * KIB
    return options


@contextlib.contextmanager
def network(options: argparse.Namespace) -> Iterator[Network]:
    if not options.link:
        yield LOOPBACK
        return
    missing: list[str] = []
    program = machine.built("delaylink", options.output, missing)
    if program is None:
        raise link.LinkError(missing[0])
    with link.delayed(program, DELAY) as keepers:
        yield Network(*link.ADDRESSES, link.INTERFACE, keepers)


def measure(program: Path, between: Network, case: Case, name: str, options: argparse.Namespace) -> Figures | None:
    """None where it failed; the program tells why."""
    way, many = WAYS[name]
    in_flight = min(64, case.blocks)
    together = max(1, MIB // case.block) if many else 1
    memory = 2 * case.block * case.blocks
    serve = [*between.enter("target"), program, "serve", between.target, memory, way, options.buffer]
    with subprocess.Popen([*map(str, serve)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target:
        assert target.stdin and target.stdout
        to = [between.target, target.stdout.readline().strip()]
        what = [case.operation, case.block, case.blocks, case.lanes, in_flight, options.seconds]
        move = [*between.enter("initiator"), program, "move", *to, *what, way, options.buffer, together]
        done = subprocess.run([*map(str, move)], stdout=subprocess.PIPE, text=True)
        target.stdin.close()
    if done.returncode != 0:
        print(f"{name} failed at {case}", file=sys.stderr)
        return None
    told = json.loads(done.stdout)
    size = told["bytes"] / 1e9
    copied = told["copied"] / told["notices"] if told["notices"] else 0.0
    return Figures(size / told["seconds"], told["cpu"] / size, told["calls"] / size, copied)


def rows(found: dict[tuple[Case, str], list[Figures]]) -> Iterator[tuple[str, ...]]:
    for (case, name), rounds in found.items():
        rate, cpu, calls, copied = (statistics.median(values) for values in zip(*rounds))
        yield str(case), name, f"{rate:.2f}", f"{cpu:.3f}", f"{calls:.0f}", f"{copied:.2f}" if copied else "-"


if __name__ == "__main__":
    sys.exit(main())
