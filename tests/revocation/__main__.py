"""python -m revocation: offer pages, revoke the offers at random moments, and look whether a byte comes later."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence

from support import paths, venvs
from support.peer import environment

from . import report
from .world import Result, Setting

# The owner's memory, the peers', and its share of the rounds: those with simulated devices take longer.
PLACES = (("host", ["host"], 8), ("npu:0", ["host", "npu:0"], 1), ("cuda:0", ["host", "cuda:0"], 1))
SECONDS = 600.0, 0.5  # that a world may take, and for each round in addition


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m revocation",
        description="Offer pages to peers, some of which are slow or stopped, revoke the offers at random moments, and "
        "check that no byte moves after that.",
    )
    parser.add_argument("--rounds", type=int, default=600, help="how many there are in all; 600")
    parser.add_argument("--seed", type=int, help="a number for all choices; drawn, and printed, where there is none")
    parser.add_argument("--path", choices=list(paths.SETTINGS), help="only by this path")
    parser.add_argument("--place", choices=[place for place, _, _ in PLACES], help="only with the owner's memory there")
    return parser.parse_args(given)


def settings(options: argparse.Namespace, seed: int) -> list[Setting]:
    chosen = [
        (path, *place)
        for path, place in itertools.product(paths.SETTINGS, PLACES)
        if options.path in (None, path) and options.place in (None, place[0])
    ]
    whole = sum(share for *_, share in chosen)
    return [
        Setting(-(-options.rounds * share // whole), seed + i, path, place, places)
        for i, (path, place, places, share) in enumerate(chosen)
    ]


def run(setting: Setting) -> Result:
    """Run a world in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "revocation.world", json.dumps(dataclasses.asdict(setting))],
        env=environment({**venvs.ours(), **setting.variables()}, ours=True),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS[0] + SECONDS[1] * setting.rounds,
    )
    if done.returncode != 0:
        return Result(broken=f"the owner has ended with {done.returncode}: {done.stderr[-4000:]}")
    return Result(**json.loads(done.stdout))


def main(given: Sequence[str]) -> int:
    options = arguments(given)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.rounds} rounds", flush=True)
    results = []
    for setting in settings(options, seed):
        results.append(run(setting))
        print(f"\n{setting}: {setting.rounds} rounds\n{report.table(results[-1])}", flush=True)
        if results[-1].violation:
            print(f"VIOLATION with seed {seed}: {results[-1].violation}")
            return 1
        if results[-1].broken:
            print(f"FAILED with seed {seed}: {results[-1].broken}")
            return 1
    whole = report.joined(results)
    print(f"\nall\n{report.table(whole)}\n{report.summary(whole.counts)}")
    little = report.too_little(whole, options.rounds)
    if little:
        print(f"seed {seed}: too little was done for this to mean anything: {', '.join(little)}")
        return 1
    print(f"seed {seed}: no byte has moved by an offer after revoke() had returned")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
