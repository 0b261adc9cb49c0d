"""python -m ownership: drive engines through faults, and look whether each keeps to what it may touch."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support import venvs

from . import driver, links, plan, report

WORDS = [word for aspect in plan.ASPECTS.values() for word in aspect]


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ownership",
        description="Drive engines through READs, WRITEs and faults at random, and check whose bytes are where.",
        epilog="faults: " + "; ".join(f"{name}: {what}" for name, what in plan.FAULTS.items()),
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it runs at least; 60")
    parser.add_argument("--seed", type=int, help="a number for all choices; drawn, and printed, where there is none")
    parser.add_argument("--only", type=words(WORDS), default=[], help=f"worlds of these: {', '.join(WORDS)}")
    parser.add_argument("--faults", type=words(plan.FAULTS), default=list(plan.FAULTS), help="only these faults")
    parser.add_argument("--keep-going", action="store_true", help="go on after a violation")
    parser.add_argument("--logs", type=Path, help="a new folder for the logs of all engines; kept where it is given")
    return parser.parse_args(given)


def words(known: Sequence[str] | dict[str, str]) -> Words:
    return Words(known)


class Words:
    """Parses a list of known words."""

    def __init__(self, known: Sequence[str] | dict[str, str]) -> None:
        self._known = list(known)

    def __call__(self, text: str) -> list[str]:
        found = [word for word in text.split(",") if word]
        strange = [word for word in found if word not in self._known]
        if strange:
            raise argparse.ArgumentTypeError(f"{', '.join(strange)} is none of {', '.join(self._known)}")
        return found


def lacking() -> dict[str, str]:
    """The words of plan.py that this machine cannot do, and why."""
    found = {}
    if not links.is_apart():
        why = f"there can be no namespaces here ({links.why_not_apart()})"
        found.update(dict.fromkeys(("link", "cut", "reset", "reuse"), why))
    try:
        venvs.mooncake(plan.MOONCAKE)
    except venvs.Unavailable as e:
        found["mooncake"] = str(e)
    return found


def main(given: Sequence[str]) -> int:
    options = arguments(given)
    if not links.is_apart() and not links.why_not_apart():
        with contextlib.suppress(venvs.Unavailable):  # lacking() tells why
            venvs.mooncake(plan.MOONCAKE)  # from here: there is no way to PyPI from the namespace
        return links.run_apart(given)
    if links.is_apart():
        links.set_up()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    missing = lacking()
    for word, why in missing.items():
        print(f"without {word}: {why}")
    if missing and (os.environ.get("CI") == "true" or os.environ.get("KVFERRY_REQUIRE_ALL") == "1"):
        print("everything is required here")
        return 1
    return check(options, list(missing))


def check(options: argparse.Namespace, missing: Sequence[str]) -> int:
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    logs = options.logs or Path(tempfile.mkdtemp(prefix="kvferry-ownership-"))
    worlds = plan.worlds(seed, options.only, options.faults, missing)
    violations, counts, lived = driver.run(worlds, options.seconds, logs, options.keep_going, seed)
    print(report.summary(counts))
    if violations:
        print(f"seed {seed}: {len(violations)} violations, the first of {violations[0].promise.value}; logs in {logs}")
        return 1
    if not options.logs:
        shutil.rmtree(logs)
    little = report.too_little(counts, lived)
    if little:
        print(f"seed {seed}: too little was done for this to mean anything: {'; '.join(little)}")
        return 1
    print(f"seed {seed}: {counts['worlds']} worlds, nothing was where it may not be")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
