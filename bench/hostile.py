"""What transfers lose beside strangers who flood the target: `python bench/hostile.py`. It needs root.

An initiator, a target and a stranger have addresses of their own in one network namespace. Each round measures the same
WRITEs once beside the flood, and once while the stranger is stopped, so that other work on the machine disturbs both. A
figure is the median of the rounds. The stranger shares the processors with the engines: on a network it has its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
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
AT_LEAST = 200  # connections that the stranger makes before each measurement: more than the engine serves
LIMITS = {"KVFERRY_MAX_SESSIONS": "128", "MC_LOG_LEVEL": "ERROR"}
KINDS = {
    "": [kind for kind in flood.KINDS if kind not in (flood.TLS, "slow readers")],
    "with a secret": [kind for kind in flood.KINDS if kind not in flood.ADMITTED],
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure transfers beside strangers who flood the target.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, metavar="S", help="of each measurement (%(default)s)")
    parser.add_argument("--only", action="append", metavar="KIND", help="a kind of flood; may be repeated")
    options = parser.parse_args()
    os.environ["KVFERRY_SAME_HOST"] = "0"
    with network.made() as namespace, tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.touch(0o600)
        secret.write_text(os.urandom(32).hex() + "\n")
        for how, kinds in KINDS.items():
            settings = {"KVFERRY_SECRET_FILE": str(secret)} if how else {}
            rows = []
            for kind in (kind for kind in kinds if not options.only or kind in options.only):
                print(f"{kind}{how and f', {how}'}", file=sys.stderr)
                rows.append([kind, *measured(namespace, settings, kind, options.rounds, options.seconds)])
            print(f"\nWRITE beside a flood{how and f', {how}'}: GB/s, and the ratio to WRITE without one")
            columns = [f"{case}, {what}" for case in CASES for what in ("GB/s", "ratio")]
            print(table(["flood", *columns, "connections"], rows), flush=True)
    return 0


def measured(namespace: network.Network, settings: dict[str, str], kind: str, rounds: int, seconds: float) -> list[str]:
    """Return the figures of a kind: for each case the rate and the ratio, and the connections that were made."""
    with nodes(namespace, settings) as (initiator, target):
        place = target.ask("place")
        initiator.ask("connect", place)
        handshakes = place.name.rsplit(":", 1)[1]
        data = next(port for port in PORTS.values() if port != handshakes)
        arguments = (kind, network.STRANGER, network.FAR, handshakes, data, str(place.address))
        with namespace.running("support.flood", *arguments) as process:
            stranger = Stranger(process)
            cells = [
                cell for work in CASES.values() for cell in compared(initiator, target, work, stranger, rounds, seconds)
            ]
            return [*cells, str(stranger.connections)]


def compared(
    initiator: Node, target: Node, work: Work, stranger: Stranger, rounds: int, seconds: float
) -> Iterator[str]:
    """The rate beside a stranger, and its ratio to the rate while the stranger is stopped."""
    initiator.ask("move_once", work)
    if initiator.ask("digest", "initiator", work) != target.ask("digest", "target", work):
        raise SystemExit("bytes are wrong")
    rates, ratios = [], []
    for _ in range(rounds):
        stranger.go_on()
        rates.append(initiator.ask("move", work, seconds).rate)
        stranger.stop()
        ratios.append(rates[-1] / initiator.ask("move", work, seconds).rate)
    stranger.go_on()
    yield f"{statistics.median(rates):.2f}"
    yield f"{statistics.median(ratios):.2f}"


class Stranger:
    """A process that floods the target, and how many connections it has made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.connections = 0
        self._process = process

    def go_on(self) -> None:
        """Let it flood the target, and wait until it does."""
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        goal = self.connections + AT_LEAST
        while self.connections < goal:
            self.connections = int(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)


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
