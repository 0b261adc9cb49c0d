"""How fast GPU memory moves between two processes of this machine, beside Mooncake, NIXL, plain C, and our own moves of
host memory, in the same minutes: `make bench-gpu`.

1. an initiator and a target are started for each engine, with memory of one GPU, or with the host's. Each moves every
   case once, and every byte is compared;
2. in rounds, all engines run one case before any runs the next one; who is not measured is suspended. A figure is the
   median of the rounds, a ratio the median of the rounds' ratios. An engine that fails is told, counted, started again;
3. fresh processes run every case, and tell how much memory they took;
4. tables, and a comparison with what is wanted, go to standard output; all figures, each round of them, to gpu.json,
   and pictures to gpu-write.svg and gpu-read.svg.

Ours runs as between two hosts, over TCP, and as by default between processes of one host. Mooncake and NIXL are found
by --mooncake and --nixl, or by KVFERRY_MOONCAKE_CUDA and KVFERRY_NIXL: a folder with the unpacked wheel of
mooncake-transfer-engine-cuda13 or nixl-cu13, or an interpreter that has it. What is missing is left out, and told.

The exit status is 1 when a byte was wrong or kvferry failed. A slow machine is no failure, nor is a peer that is
missing or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for how peers are found

import plot
from comparison import machine, report
from comparison.case import KIB, MIB, Case, size_text
from comparison.pairs import LOOPBACK, EndError, Mover, Pair, PlainC, Setup
from comparison.results import MOONCAKE, NIXL, PLAIN, Quantity, Results, cpu, p50, rate
from comparison.running import NIXL_SETTINGS, NO_SHORTCUT, Make, Run, attempt, opened, pair, progress
from comparison.wanted import Wanted
from support import unpacked, venvs
from tables import table

OPERATIONS = ("write", "read")
BLOCKS = {
    "one": (4 * KIB, 1),
    "4K": (4 * KIB, 256),
    "16K": (16 * KIB, 256),
    "64K": (64 * KIB, 64),
    "1M": (MIB, 32),
    "16M": (16 * MIB, 8),
}  # and how many of a call
QUICK = {"rounds": 1, "seconds": 0.05}
WHERE = "GPU"  # of results

# Engines by their names. "same host" is what processes of one host do by default; else they use TCP.
OURS, NEAR = "ours", "ours, same host"
HOST, HOST_NEAR = "host to host", "host to host, same host"
OUT, IN = "GPU to host", "host to GPU"
DRAWN = (HOST, OURS, OUT, IN, MOONCAKE, NIXL)
ON_GPU = (OURS, NEAR, MOONCAKE, NIXL)
GPU_NIXL = {**NIXL_SETTINGS, "UCX_TLS": "tcp,cuda_copy"}


def setups(near: str, far: str) -> list[Setup]:
    gpus, hosts = (near, far), ("host", "host")
    return [
        Setup(OURS, "ours", "ours", NO_SHORTCUT, gpus),
        Setup(HOST, "ours", "ours", NO_SHORTCUT, hosts),
        Setup(MOONCAKE, "mooncake", "mooncake", {}, gpus),
        Setup(f"{MOONCAKE}, unpooled", "mooncake", "mooncake", {"MC_TCP_ENABLE_CONNECTION_POOL": "0"}, gpus),
        Setup(NIXL, "nixl", "nixl", GPU_NIXL, gpus),
        Setup(NEAR, "ours", "ours", {}, gpus),
        Setup(HOST_NEAR, "ours", "ours", {}, hosts),
        Setup(OUT, "ours", "ours", NO_SHORTCUT, (near, "host")),
        Setup(IN, "ours", "ours", NO_SHORTCUT, ("host", far)),
    ]


def cases(names: Sequence[str]) -> list[Case]:
    return [Case(operation, *BLOCKS[name]) for name in names for operation in OPERATIONS]


# Measuring


def measure(run: Run, making: dict[str, Make[Mover]], deadline: float) -> None:
    found = cases(run.options.cases)
    with opened(run, making) as movers, contextlib.ExitStack() as stack:
        progress(f"{len(found)} cases of {len(movers)} engines, each checked byte for byte")
        again = functools.partial(started_again, stack, making, movers)
        for case, name in steps(run, found, movers, deadline):
            mover = movers[name]
            if isinstance(mover, Pair):
                with attempt(run, f"{case}, {name}"), again(name):
                    mover.check(case)
                    run.results.checked.setdefault(WHERE, []).append(f"{name}: {case}")
        for _ in run.rounds():
            for case, name in steps(run, found, movers, deadline):
                with attempt(run, f"{case}, {name}"), again(name):
                    run.results.add(WHERE, case, name, movers[name].move(case, run.options.seconds))


def steps(run: Run, found: list[Case], movers: dict[str, Mover], deadline: float) -> Iterator[tuple[Case, str]]:
    """All engines at one case before any at the next one, until the time is over."""
    for case, name in itertools.product(found, list(movers)):
        if time.monotonic() > deadline:
            run.results.missing.append(f"{case}, {name}, and what is behind it: the time was over, see --limit")
            return
        if name in movers:
            yield case, name


@contextlib.contextmanager
def started_again(
    stack: contextlib.ExitStack, making: dict[str, Make[Mover]], movers: dict[str, Mover], name: str
) -> Iterator[None]:
    """Start an engine again that fails within the block."""
    try:
        yield
    except (EndError, OSError):
        movers.pop(name).close()
        movers[name] = making[name]()
        stack.callback(movers[name].close)
        raise


def measure_memory(run: Run, making: dict[str, Make[Mover]], deadline: float) -> dict[str, int]:
    """Have fresh processes run every case. Returns the bytes of the GPU that an engine took meanwhile, at both ends."""
    taken: dict[str, int] = {}
    for name in ON_GPU:
        if name in making and time.monotonic() < deadline:
            with attempt(run, f"memory, {name}"), contextlib.closing(making[name]()) as mover:
                assert isinstance(mover, Pair)
                with mover.awake():
                    before = mover.initiator.ask("device_memory")
                for case in cases(run.options.cases):
                    mover.move(case, run.options.seconds)
                with mover.awake():
                    taken[name] = mover.initiator.ask("device_memory") - before
                    ends = {"initiator": mover.initiator, "target": mover.targets[0]}
                    run.results.memory[name] = {side: end.ask("memory") for side, end in ends.items()}
    return taken


# The report


def wanted(results: Results, names: Sequence[str]) -> Iterator[Wanted]:
    for case in cases(names):
        if case.blocks == 1:
            ratio = results.ratio(WHERE, case, OURS, HOST, p50)
            yield Wanted(f"{case}, p50: GPU to GPU / {HOST}", ratio, 2, True)
            continue
        others = (NIXL,) if case.block == 4 * KIB else (MOONCAKE, NIXL)
        best = fastest(results, case, others)
        yield compared(results, case, best or " or ".join(others), (best, best), 4)
        yield compared(results, case, HOST, (HOST, HOST_NEAR), 0.75 if case.block == 4 * KIB else 0.85)


def fastest(results: Results, case: Case, others: Sequence[str]) -> str:
    """The name of the best of other engines, with its setting; "" where there is none."""
    names = [results.best(WHERE, case, other) for other in others]
    rates = {name: results.median(WHERE, case, name, rate) or 0.0 for name in names}
    return max((name for name in names if rates[name]), key=lambda name: rates[name], default="")


def compared(results: Results, case: Case, what: str, bases: tuple[str, str], least: float) -> Wanted:
    """Ours with memory of a GPU, over TCP and as on the same host, each over one of the bases."""
    ratios = [results.ratio(WHERE, case, name, base) for name, base in zip((OURS, NEAR), bases)]
    return Wanted(f"{case}: GPU to GPU / {what}", ratios[0], least, direct=ratios[1])


HEADER = ["compared", "wanted", "over TCP", "reached", "same host"]


def engines(results: Results, quantity: Quantity, short: bool = False) -> str:
    rows = [case for case in results.cases.get(WHERE, {}) if (case.blocks == 1) == short]
    return report.engines(results, WHERE, rows, quantity, "{:.2f}") if rows else "nothing"


def memory(results: Results, taken: dict[str, int]) -> str:
    rows = []
    for name, sides in results.memory.items():
        host = [f"{(m['peak'] - m['registered'] - m['bare']) / MIB:.0f}" for m in sides.values()]
        rows.append([name, *host, f"{taken[name] / MIB:.0f}"])
    return table(["MiB", "initiator", "target", "GPU, both ends"], rows)


def show(run: Run, taken: dict[str, int]) -> None:
    results, options = run.results, run.options
    rows = list(wanted(results, options.cases))
    print("\n".join(f"{name}: {text}" for name, text in run.machine.told.items()))
    print(f"\nGB/s (10^9 bytes), medians of {options.rounds} rounds of {options.seconds:g} s; blocks are scattered\n")
    print(engines(results, rate))
    print("\nOne request at a time, p50 in microseconds\n")
    print(engines(results, p50, short=True))
    print("\nSeconds of processor time for 1 GB, both ends\n")
    print(engines(results, cpu))
    if results.memory:
        print("\nMemory beside what was there without an engine: the host's, page-locked or not, and the GPU's\n")
        print(memory(results, taken))
    print("\n" + table(HEADER, [row.row() for row in rows]))
    count = sum(map(len, results.checked.values()))
    print(f"\nEvery byte of {count} cases was compared. It took {results.seconds:.0f} s.")
    lists = {"Could not be run": results.missing, "FAILED": results.failures, "Peers failed": results.peer_failures}
    for title, lines in lists.items():
        print("\n" + report.listed(title, lines) if lines else f"{title}: none")
    found = {
        "machine": run.machine.told,
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        **dataclasses.asdict(results),
        "cases": list(report.entries(results)),
        "gpu_memory": taken,
        "wanted": [{**row._asdict(), "reached": row.reached(row.measured)} for row in rows],
    }
    draw(results, options.cases, options.output, options.before)
    (options.output / "gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


def draw(results: Results, names: Sequence[str], folder: Path, before: Path | None) -> None:
    """GB/s over block size, one picture for each operation; before is a gpu.json of another version."""
    found_before = json.loads(before.read_text(encoding="utf-8"))["cases"] if before else []
    for operation in OPERATIONS:
        lines = {}
        for name in DRAWN:
            rates = {
                case.block: found
                for case in cases(names)
                if case.operation == operation and case.blocks > 1
                if (found := results.median(WHERE, case, name, rate))
            }
            if rates:
                lines[name] = rates
        rates = {
            each["block"]: statistics.median(one["GBps"] for one in each["rounds"])
            for each in found_before
            if each["engine"] == OURS and each["operation"] == operation and each["blocks"] > 1
        }
        if rates:
            lines[f"{OURS}, before"] = rates
        if lines:
            ticks = [(block, size_text(block)) for block, count in map(BLOCKS.__getitem__, names) if count > 1]
            picture = plot.svg(f"{operation.upper()}, GPU to GPU over TCP", lines, ticks)
            (folder / f"gpu-{operation}.svg").write_text(picture, encoding="utf-8")


# What there is


def makers(run: Run, settings: dict[str, dict[str, str]], size: int) -> dict[str, Make[Mover]]:
    """How to start what is there, with so many bytes of memory at each end."""
    found: dict[str, Make[Mover]] = {}
    for setup in setups(run.options.gpu, run.options.far_gpu or run.options.gpu):
        if run.can(setup) and (not run.options.only or setup.name.split(",")[0] in run.options.only):
            own = {**settings.get(setup.initiator, {}), **setup.settings}
            found[setup.name] = functools.partial(pair, run, setup._replace(settings=own), LOOPBACK, size)
    for lanes in (1, 4):
        if run.machine.rawtcp and (not run.options.only or "plain C" in run.options.only):
            found[PLAIN[lanes]] = functools.partial(PlainC, run.machine.rawtcp, lanes, LOOPBACK, size)
    return found


def find(options: argparse.Namespace) -> tuple[machine.Machine, dict[str, dict[str, str]]]:
    """The machine, and the settings with which each engine's interpreter finds it."""
    pythons, settings, missing = {"ours": sys.executable}, {"ours": venvs.ours()}, list[str]()
    for kind, locate in (("mooncake", unpacked.mooncake), ("nixl", unpacked.nixl)):
        try:
            pythons[kind], settings[kind] = locate()
        except venvs.Unavailable as e:
            missing.append(str(e))
    rawtcp = options.rawtcp or machine.built("rawtcp", options.output, missing)
    told = {**dict(machine.description(pythons, settings)), "GPU": gpu_name()}
    return machine.Machine(pythons, rawtcp, None, None, told, missing), settings


def gpu_name() -> str:
    """What the driver's own program calls the first GPU, and the driver's version."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip() or "not known"
    except (OSError, subprocess.TimeoutExpired):
        return "not known"


def main() -> int:
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    for variable, named in ((unpacked.MOONCAKE, options.mooncake), (unpacked.NIXL, options.nixl)):
        if named:
            os.environ[variable] = str(named)
    start = time.monotonic()
    try:
        found, settings = find(options)
    except venvs.Unavailable as e:
        print(f"the benchmark failed: {e}", file=sys.stderr)
        return 1
    results = Results(missing=list(found.missing))
    run = Run(found, options, results, options.output)
    making = makers(run, settings, max(case.span for case in cases(options.cases)))
    measure(run, making, start + options.limit)
    taken = {} if options.no_memory else measure_memory(run, making, start + options.limit)
    results.seconds = time.monotonic() - start
    show(run, taken)
    return 1 if results.failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure transfers of GPU memory, beside other engines.")
    option = parser.add_argument
    option("--quick", action="store_true", help="a short run, for a first look")
    option("--rounds", type=int, metavar="N", help="rounds (3)")
    option("--seconds", type=float, metavar="S", help="of each case and round (0.3)")
    option("--cases", type=lambda text: text.split(","), default=list(BLOCKS), metavar="SIZES", help=",".join(BLOCKS))
    option("--only", action="append", metavar="ENGINE", help="an engine to run, as the tables name it; repeat for more")
    option("--gpu", default="cuda:0", metavar="PLACE", help="whose memory is moved (%(default)s)")
    option("--before", type=Path, metavar="FILE", help="gpu.json of another version, for the pictures")
    option("--far-gpu", metavar="PLACE", help="that of the target (the same)")
    option("--limit", type=float, default=300, metavar="S", help="seconds after which no case is begun (%(default)s)")
    option("--no-memory", action="store_true", help="do not measure how much memory engines take")
    option("--mooncake", type=Path, metavar="PATH", help="folder with mooncake/engine.so for CUDA, or an interpreter")
    option("--nixl", type=Path, metavar="PATH", help="folder with NIXL, or an interpreter")
    option("--rawtcp", type=Path, metavar="FILE", help="the plain C program (compiled)")
    option("--output", type=Path, default="build/bench", metavar="FOLDER", help="for files (%(default)s)")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(BLOCKS):
        parser.error(f"cases are {', '.join(BLOCKS)}, not {', '.join(unknown)}")
    for name, value in (QUICK if options.quick else {"rounds": 3, "seconds": 0.3}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.output = options.output.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
