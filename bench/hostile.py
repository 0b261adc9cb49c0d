"""What transfers lose beside strangers who flood the target: `python bench/hostile.py`. It needs root.

An initiator, a target and a stranger have addresses of their own in one network namespace. Each round measures the same
WRITEs once by themselves and once beside the flood, so that other work on the machine disturbs both. A figure is the
median of the rounds' ratios. The stranger shares the processors with the engines, at the lowest priority: on a network
it would have its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for the stranger and its namespace

from nodes import Node, Work
from support import flood, network
from tables import table

KIB = 1 << 10
CASES = {
    "1 MiB x 32": Work("write", 1024 * KIB, 32, 32, 1, 1024 * KIB),
    "64 KiB x 64": Work("write", 64 * KIB, 64, 64, 1, 64 * KIB),
}
SIZE = max(work.span for work in CASES.values())
PORTS = {"MC_MIN_RPC_PORT": "17001", "MC_MAX_RPC_PORT": "17002"}
BEFORE = 400  # connections that the stranger makes before anything is measured: more than the engine serves
LOWEST = 19  # priority
LIMITS = {"KVFERRY_MAX_SESSIONS": "128"}
KINDS = {
    "": [kind for kind in flood.KINDS if kind not in (flood.TLS, "slow readers")],
    "with a secret": [kind for kind in flood.KINDS if kind not in flood.ADMITTED],
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure transfers beside strangers who flood the target.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, metavar="S", help="of each measurement (%(default)s)")
    parser.add_argument("--only", action="append", metavar="KIND", help="a kind of flood; may be repeated")
    options = parser.parse_args()
    os.environ["KVFERRY_SAME_HOST"] = "0"
    with network.made() as namespace, tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.touch(0o600)
        secret.write_text(os.urandom(32).hex() + "\n")
        for how, kinds in KINDS.items():
            settings = {"KVFERRY_SECRET_FILE": str(secret)} if how else {}
            chosen = [kind for kind in kinds if not options.only or kind in options.only]
            rows = [[kind, *measured(namespace, settings, kind, options.rounds, options.seconds)] for kind in chosen]
            print(f"\nWRITE beside a flood{how and f', {how}'}: GB/s, and the ratio to WRITE without one")
            columns = [f"{case}, {what}" for case in CASES for what in ("GB/s", "ratio")]
            print(table(["flood", *columns, "connections"], rows))
    return 0


def measured(namespace: network.Network, settings: dict[str, str], kind: str, rounds: int, seconds: float) -> list[str]:
    """Return the figures of a kind: for each case the rate and the ratio, and the connections that were made."""
    cells: list[str] = []
    with nodes(namespace, settings) as (initiator, target):
        place = target.ask("place")
        initiator.ask("connect", place)
        handshakes = place.name.rsplit(":", 1)[1]
        data = next(port for port in PORTS.values() if port != handshakes)
        made = 0
        for work in CASES.values():
            initiator.ask("move_once", work)
            rates, ratios = [], []
            for _ in range(rounds):
                alone = initiator.ask("move", work, seconds).rate
                with namespace.running(
                    "support.flood", kind, network.STRANGER, network.FAR, handshakes, data, str(place.address)
                ) as stranger:
                    assert stranger.stdout is not None
                    os.setpriority(os.PRIO_PROCESS, stranger.pid, LOWEST)
                    while (made_now := int(stranger.stdout.readline())) < BEFORE:
                        pass
                    beside = initiator.ask("move", work, seconds).rate
                    made += made_now
                rates.append(beside)
                ratios.append(beside / alone)
            if initiator.ask("digest", "initiator", work) != target.ask("digest", "target", work):
                raise SystemExit(f"{kind}: bytes are wrong")
            cells += [f"{statistics.median(rates):.2f}", f"{statistics.median(ratios):.2f}"]
    return [*cells, str(made)]


@contextlib.contextmanager
def nodes(namespace: network.Network, settings: dict[str, str]) -> Iterator[tuple[Node, Node]]:
    """An initiator and a target, for the time of the block."""
    made = [
        Node("initiator", "host", SIZE, network.NEAR, settings, namespace.keeper),
        Node("target", "host", SIZE, network.FAR, {**settings, **LIMITS, **PORTS}, namespace.keeper),
    ]
    try:
        yield made[0], made[1]
    finally:
        for node in made:
            node.close()


if __name__ == "__main__":
    sys.exit(main())
