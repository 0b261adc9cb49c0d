"""How fast kvferry is beside Mooncake, NIXL and a plain C program, on this machine: `make bench`.

1. interpreters with Mooncake and NIXL are made in build/peers, and the C programs are compiled. What cannot be had is
   told, with how to get it, and left out;
2. each section starts its processes, an initiator and a target for each engine and its settings, moves every case once
   and compares every byte of it, and then measures in rounds: all engines at one case after the other. A figure is the
   median of the rounds, a ratio the median of the rounds' ratios;
3. report.md has the tables and a comparison with what is wanted, beside plots; comparison.json has everything, each
   round of it. The comparison is printed, too.

Sections are: loopback (every case, processor time, memory), busy (beside processes that compute), link (the same cases
over a round trip of 0.65 ms), security (with a secret and without, over both), observed (with metrics, with traces,
with both, and with none of them), layouts (a plan of kvferry's that changes the layout of a cache, beside plain blocks
and lists of ranges, on one host, over TCP and over the link), lanes, roundtrip, peers, crowd (short requests to an
engine to which 64 peers write long blocks, or from which they read them), growth (of what a program has under way,
registered, or moved), and crossing (from Python).

The exit status is 1 when a byte was wrong or kvferry failed. A slow machine is no failure, nor is a peer that
is missing or fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for how peers are installed

from comparison import machine, report
from comparison.results import Results
from comparison.running import Run, attempt, progress
from comparison.sections import SECTIONS
from link import LinkError
from support import venvs

QUICK = {"rounds": 2, "seconds": 0.05, "idle": 0.5, "largest": 1000}


def main() -> int:
    options = arguments()
    if options.ours is None:
        try:
            os.environ.update(venvs.ours())
        except venvs.Unavailable as e:
            print(f"the benchmark failed: {e}", file=sys.stderr)
            return 1
    results = measure(options)
    return 1 if results.failures else 0


def measure(options: argparse.Namespace) -> Results:
    start = time.monotonic()
    progress("interpreters and programs")
    found = machine.find(options)
    results = Results(missing=list(found.missing))
    for text in results.missing:
        progress(f"cannot run {text}")
    logs = options.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    run = Run(found, options, results, logs)
    for name in options.only or SECTIONS:
        section(run, name)
    results.seconds = time.monotonic() - start
    report.write(options.output, run)
    print(report.summary(run))
    return results


def section(run: Run, name: str) -> None:
    measured, need = SECTIONS[name]
    if need and getattr(run.machine, need) is None:
        progress(f"section {name}: left out")
        return
    progress(f"section {name}")
    with attempt(run, f"section {name}"):
        try:
            measured(run)
        except LinkError as e:
            raise OSError(f"no link: {e}") from e


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare kvferry with Mooncake, NIXL and plain C on this machine.")
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (5)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each case and round (0.2)")
    parser.add_argument("--idle", type=float, metavar="S", help="seconds in which nothing is done (1.5)")
    parser.add_argument("--largest", type=int, metavar="N", help="most peers, requests, regions, transfers (100000)")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="a section to run; may be repeated")
    parser.add_argument("--ours", metavar="PYTHON", help="an interpreter with kvferry (this one)")
    parser.add_argument("--mooncake", metavar="PYTHON", help="one with Mooncake (installed); none: leave it out")
    parser.add_argument("--nixl", metavar="PYTHON", help="one with NIXL (installed); none: leave it out")
    parser.add_argument("--output", type=Path, default="build/bench", metavar="FOLDER", help="for files (%(default)s)")
    options = parser.parse_args()
    defaults = QUICK if options.quick else {"rounds": 5, "seconds": 0.2, "idle": 1.5, "largest": 100_000}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.output = options.output.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
