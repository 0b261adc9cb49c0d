"""Changes of layout between memory of GPUs, of two processes of this machine over TCP: `python bench/gpu_layouts.py`.

Each change is one transfer of a plan. In the same rounds, as many bytes move in plain blocks; and where the initiator
reads, it also reads them as the sender has them, in plain blocks, and PyTorch puts them in order, as a receiver does
whose engine cannot. Where the initiator writes, the time of that is the one of plain blocks and of the reordering by
itself.

Every byte of every case is compared first. A figure is the median of the rounds, a ratio the median of the rounds'
ratios. Tables go to standard output, all figures to gpu-layouts.json. The exit status is 1 when a byte was wrong or a
transfer failed. A slow machine is no failure, nor is PyTorch that is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for how the package is found

from comparison import machine, reorder, report
from comparison.case import MIB, Case, changing, plain, planned
from comparison.layouts import BLOCKS, PLAN, RANGES, Instead
from comparison.pairs import LOOPBACK, Measured, Mover, Pair, Setup
from comparison.results import Results, p50, rate
from comparison.running import NO_SHORTCUT, Make, Plan, Run, attempt, dropping, in_rounds, opened, pair, progress
from comparison.wanted import Wanted
from gpu import gpu_name
from support import venvs
from tables import median_ratio, table

WHERE = "GPU"  # of results
REORDERED = f"{BLOCKS} + permute"
REORDERING = "reordering"  # a series: microseconds by the change, and the bytes
CHANGES = ("TP 2 to 1, NHD, 1", "TP 2 to 1, NHD, 8", "HND to NHD", "blocks of 128 to 16, HND to NHD")
UNIT = 2  # MiB: changes have whole blocks of 128 tokens


class Receiver(Pair):
    """A pair whose initiator reads plain blocks, and reorders them with PyTorch."""

    def move(self, case: Case, seconds: float) -> Measured:
        return self.measured("receive", case, seconds)

    def reordering(self, case: Case, seconds: float) -> float:
        """Microseconds of the reordering alone."""
        with self.awake():
            return float(self.initiator.ask("reordering", case, seconds))

    def missing(self) -> str:
        """Why it cannot be run; "" where it can."""
        with self.awake():
            return str(self.initiator.ask("cannot_reorder"))

    def _once(self, case: Case) -> None:
        self.initiator.ask("receive_once", case)


def cases(options: argparse.Namespace) -> list[Case]:
    size = options.mib * MIB
    return [changing(operation, change, size) for change in CHANGES for operation in ("write", "read")]


def makers(run: Run, settings: dict[str, str]) -> Iterator[tuple[str, Make[Mover]]]:
    """How to start what takes part."""
    near, far = run.options.gpu, run.options.far_gpu or run.options.gpu
    setup = Setup("", "ours", "ours", {**settings, **NO_SHORTCUT}, (near, far))
    found = cases(run.options)
    size = max(max(case.span, plain(case).span, reorder.span(case.caches)) for case in found)
    for name, instead in ((PLAN, planned), (BLOCKS, plain)):
        yield name, functools.partial(Instead, run, setup._replace(name=name), LOOPBACK, size, instead)
    if run.options.ranges:
        yield RANGES, functools.partial(pair, run, setup._replace(name=RANGES), LOOPBACK, size)
    receiver = setup._replace(name=REORDERED)
    yield REORDERED, functools.partial(Receiver, receiver, run.machine.pythons, run.logs, LOOPBACK, size)


def measure(run: Run, making: dict[str, Make[Mover]]) -> None:
    with opened(run, making) as movers:
        without_pytorch(run, movers)
        plan: Plan = {
            case: [name for name in movers if name != REORDERED or case.operation == "read"]
            for case in cases(run.options)
        }
        in_rounds(run, WHERE, plan, movers)
        if REORDERED in movers:
            progress("  the reordering alone")
            for _ in run.rounds():
                reorder_alone(run, movers)


def without_pytorch(run: Run, movers: dict[str, Mover]) -> None:
    """Leave out what needs PyTorch where there is none."""
    receiver = movers.get(REORDERED)
    if isinstance(receiver, Receiver):
        with attempt(run, f"{REORDERED}, the start"), dropping(movers, REORDERED):
            if why := receiver.missing():
                run.results.missing.append(f"{REORDERED}: {why}")
                del movers[REORDERED]


def reorder_alone(run: Run, movers: dict[str, Mover]) -> None:
    for case in cases(run.options):
        receiver = movers.get(REORDERED)
        if case.operation == "read" and isinstance(receiver, Receiver):
            with attempt(run, f"{REORDERING}, {case}"), dropping(movers, REORDERED):
                took = receiver.reordering(case, run.options.seconds)
                run.results.add_to_series(REORDERING, case.change, case.block * case.blocks, took)


# The report


def reordering(results: Results, case: Case) -> list[float]:
    """Microseconds in each round."""
    return results.series.get(REORDERING, {}).get(case.change, {}).get(case.block * case.blocks, [])


def against_pytorch(results: Results, case: Case) -> float | None:
    """The time of a plan over that of plain blocks and a reordering of theirs."""
    if case.operation == "read":
        return results.ratio(WHERE, case, PLAN, REORDERED, p50)
    plans, blocks = (results.values(WHERE, case, name, p50) for name in (PLAN, BLOCKS))
    both = [sum(times) for times in zip(blocks, reordering(results, case))]
    return median_ratio(plans, both) if plans and both else None


def wanted(results: Results, options: argparse.Namespace) -> Iterator[Wanted]:
    for case in cases(options):
        yield Wanted(f"{case}: plan / plain blocks, GB/s", results.ratio(WHERE, case, PLAN, BLOCKS), 0.85)
        what = REORDERED if case.operation == "read" else f"{BLOCKS}, and permute by itself"
        yield Wanted(f"{case}: time of plan / of {what}", against_pytorch(results, case), 1, True)


def alone(results: Results) -> str:
    rows = []
    for change, found in results.series.get(REORDERING, {}).items():
        for size, times in found.items():
            took = sorted(times)[len(times) // 2]
            rows.append([change, f"{size / MIB:.0f}", f"{took:.0f}", f"{size / took / 1e3:.1f}"])
    return table(["the reordering alone", "MiB", "microseconds", "GB/s"], rows) if rows else ""


def show(run: Run) -> None:
    results, options = run.results, run.options
    rows = list(wanted(results, options))
    print("\n".join(f"{name}: {text}" for name, text in run.machine.told.items()))
    rounds = f"medians of {options.rounds} rounds of {options.seconds:g} s"
    print(f"\nGB/s (10^9 bytes), {rounds}; a call moves {options.mib} MiB\n")
    found = list(results.cases.get(WHERE, {}))
    print(report.engines(results, WHERE, found, rate, "{:.2f}") if found else "nothing")
    if found:
        print("\nMicroseconds of a call, p50\n\n" + report.engines(results, WHERE, found, p50, "{:.0f}"))
    print("\n" + alone(results) + "\n")
    print(table(["compared", "wanted", "measured", "reached"], [row.row()[:4] for row in rows]))
    count = sum(map(len, results.checked.values()))
    print(f"\nEvery byte of {count} cases was compared. It took {results.seconds:.0f} s.")
    for title, lines in {"Could not be run": results.missing, "FAILED": results.failures}.items():
        print("\n" + report.listed(title, lines) if lines else f"{title}: none")
    figures = {
        "machine": run.machine.told,
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        **dataclasses.asdict(results),
        "cases": list(report.entries(results)),
        "wanted": [{**row._asdict(), "reached": row.reached(row.measured)} for row in rows],
    }
    (options.output / "gpu-layouts.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        settings = venvs.ours()
    except venvs.Unavailable as e:
        print(f"the benchmark failed: {e}", file=sys.stderr)
        return 1
    pythons = {"ours": sys.executable}
    told = {**dict(machine.description(pythons, {"ours": settings})), "GPU": gpu_name()}
    run = Run(machine.Machine(pythons, None, None, None, told, []), options, Results(), options.output)
    measure(run, dict(makers(run, settings)))
    run.results.seconds = time.monotonic() - start
    show(run)
    return 1 if run.results.failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure changes of layout between memory of GPUs.")
    option = parser.add_argument
    option("--rounds", type=int, default=3, metavar="N", help="rounds (%(default)s)")
    option("--seconds", type=float, default=0.3, metavar="S", help="of each case and round (%(default)s)")
    option("--mib", type=int, default=48, metavar="N", help=f"MiB of a call, a multiple of {UNIT} (%(default)s)")
    option("--ranges", action="store_true", help="also move the runs as a list of ranges, which takes long")
    option("--gpu", default="cuda:0", metavar="PLACE", help="whose memory is moved (%(default)s)")
    option("--far-gpu", metavar="PLACE", help="that of the target (the same)")
    option("--output", type=Path, default="build/bench", metavar="FOLDER", help="for files (%(default)s)")
    options = parser.parse_args()
    if options.mib < UNIT or options.mib % UNIT:
        parser.error(f"--mib is a multiple of {UNIT}")
    options.output = options.output.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
