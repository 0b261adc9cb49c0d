"""What TLS costs: the same transfers with a cluster secret and without, in the same rounds."""

from __future__ import annotations

import contextlib
import functools
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from comparison.case import KIB, MIB, Case
from comparison.pairs import LOOPBACK, Mover, Network, Setup
from comparison.results import DIRECT, TLS
from comparison.running import SETUPS, Make, Plan, Run, attempt, in_rounds, linked, opened, pair, progress

ON_LOOPBACK, ON_LINK = "loopback, TLS", "link, TLS"  # where, in the results
CASES = [Case(op, block, blocks) for block, blocks in ((64 * KIB, 64), (MIB, 32)) for op in ("write", "read")]
DELAY = 250  # microseconds each way, as in the section "link"
FIRST = "first transfer"
FIRST_CASE = Case("write", 4 * KIB, 1)
FIRST_DELAY = 50_000  # microseconds each way: a handshake takes the processors a small part of that


def secured(run: Run) -> None:
    with both() as setups:
        measured(run, ON_LOOPBACK, setups, LOOPBACK)
        if run.machine.delaylink:
            with linked(run, DELAY) as network:
                measured(run, ON_LINK, setups, network)
            with linked(run, FIRST_DELAY) as network:
                first_transfers(run, setups, network)


@contextlib.contextmanager
def both() -> Iterator[dict[str, Setup]]:
    """Ours without a secret and with one, until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.touch(mode=0o600)
        secret.write_text(f"{secrets.token_hex(32)}\n")
        plain = SETUPS[DIRECT]
        settings = {**plain.settings, "KVFERRY_SECRET_FILE": str(secret)}
        yield {DIRECT: plain, TLS: plain._replace(name=TLS, settings=settings)}


def measured(run: Run, where: str, setups: dict[str, Setup], network: Network) -> None:
    progress(f"  {where}")
    size = max(case.span for case in CASES)
    making: dict[str, Make[Mover]] = {
        name: functools.partial(pair, run, setup, network, size) for name, setup in setups.items()
    }
    plan: Plan = {case: tuple(setups) for case in CASES}
    with opened(run, making) as movers:
        in_rounds(run, where, plan, movers)


def first_transfers(run: Run, setups: dict[str, Setup], network: Network) -> None:
    """Round trips of the first transfer with a peer: the fewest of the rounds, since other work only adds to them."""
    progress(f"  the {FIRST} with a peer")
    trips: dict[str, list[float]] = {}
    for _ in run.rounds():
        for name, setup in setups.items():
            with (
                attempt(run, f"{FIRST}, {name}"),
                contextlib.closing(pair(run, setup, network, MIB)) as ends,
                ends.awake(),
            ):
                trips.setdefault(name, []).append(ends.initiator.ask("first", FIRST_CASE))
    for name, found in trips.items():
        run.results.add_to_series(FIRST, name, 2 * FIRST_DELAY / 1e3, min(found))
