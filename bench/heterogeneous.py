"""How fast KV cache moves between host memory and NPUs, beside host to host in the same minute: `make bench-npu`.

1. processes are started: initiators and targets with host memory and with an NPU's, and some of the latter that copy
   block by block. Each case is run once, and every byte of it compared;
2. in rounds, each case is run for a moment, all pairs at one block size after the other, so that whatever else the
   machine does hits all of them. A figure is the median of the rounds, a ratio the median of the rounds' ratios;
3. with copies from the NPU as slow as the network was, pipelined staging runs against copying first, then sending;
4. the rounds are repeated over a link of 10 Gbit/s, where the machine lets one be made: over the loopback interface the
   processors are the bound, and simulated copies, which a real NPU does by itself, take them from the network;
5. fresh processes move host memory, and others NPU memory, and tell how much memory they ever had;
6. the staging is measured without a network, by a benchmark in Go, where there is a Go;
7. tables, and a comparison with what is wanted, go to standard output. All figures go to heterogeneous.json, and plots
   to heterogeneous.svg and staging.svg.

Steps 3, 5 and 6, and the comparison, are for simulated NPUs. The exit status is 1 when a byte was wrong or a transfer
failed. A slow machine is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import link
import staging
from cases import (
    BATCH,
    BLOCKS,
    HOST_TO_HOST,
    IN_FLIGHT,
    LATENCY,
    LINK,
    MEMORY,
    MIB,
    NPU_TO_HOST,
    NPU_TO_NPU,
    OPERATIONS,
    PAIRS,
    POOL,
    SETTINGS,
    Case,
    Pair,
    all_cases,
    work,
)
from figures import Figures, Peak, Pipelining, Rounds
from kvferry import __version__
from kvferry._places import size_text
from kvferry.demo.devices import DemoError, Devices, find_npus
from nodes import Measured, Node, NodeError, Place
from report import comparisons, tables, write_files
from tables import table

ROLES = ("initiator", "target")
AS_IF_APART = {"KVFERRY_SAME_HOST": "0"}  # the processes stand for two hosts, and use TCP


class Processes:
    """Initiators and targets."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.nodes = nodes
        self._places: dict[str, Place] = {name: node.ask("place") for name, node in nodes.items()}

    def initiator(self, pair: Pair) -> Node:
        """The initiator of a pair, connected with its target."""
        node = self.nodes[pair.node("initiator")]
        node.ask("connect", self._places[pair.node("target")])
        return node

    def move(self, case: Case, seconds: float) -> Measured:
        """Run a case for so long."""
        target = self.nodes[case.pair.node("target")]
        before = target.ask("cpu")
        measured: Measured = self.initiator(case.pair).ask("move", case.work, seconds)
        return measured._replace(cpu=measured.cpu + target.ask("cpu") - before)

    def check(self, cases: Iterable[Case]) -> None:
        """Move every block of every case once, and compare every byte. NodeError when one differs.

        Sources are filled, each with other bytes, and not written to while they are read. No two cases put the same
        bytes in the same place: so what has not arrived differs.
        """
        for operation in OPERATIONS:
            for node in self.nodes.values():
                node.ask("fill")
            for case in cases:
                if case.work.operation == operation:
                    self._check(case)

    def _check(self, case: Case) -> None:
        initiator = self.initiator(case.pair)
        initiator.ask("move_once", case.work)
        here = initiator.ask("digest", "initiator", case.work)
        there = self.nodes[case.pair.node("target")].ask("digest", "target", case.work)
        if here != there:
            raise NodeError(f"bytes differ after {case.work}, {case.pair}")


@contextlib.contextmanager
def started(pairs: Iterable[Pair], npus: Devices, host: str, keeper: int | None = None) -> Iterator[Processes]:
    """The processes of some pairs, until the end of the block. keeper is the link's that they use."""
    with contextlib.ExitStack() as stack:
        nodes: dict[str, Node] = {}
        for pair, role in ((pair, role) for pair in pairs for role in ROLES):
            name = pair.node(role)
            if name not in nodes:
                where = "host" if pair.kind(role) == "host" else npus.place(role == "target")
                settings = {"KVFERRY_STAGING_POOL_SIZE": str(POOL), **AS_IF_APART, **SETTINGS[pair.way]}
                nodes[name] = Node(name, where, MEMORY, host, settings, keeper)
                stack.callback(nodes[name].close)
        yield Processes(nodes)


def measure(options: argparse.Namespace, npus: Devices) -> Figures:
    cases = all_cases()
    copy_cpu, pipelining = 0.0, None
    with started((case.pair for case in cases), npus, options.host) as processes:
        progress(f"{len(cases)} cases, each checked byte for byte")
        processes.check(cases)
        rounds = measure_rounds(processes, cases, options.rounds, options.seconds)
        if npus.simulated:
            copy_cpu = processes.nodes[NPU_TO_HOST.node("initiator")].ask("simulated_copy")
            rate = rounds.rate(HOST_TO_HOST, "write", MIB)
            pipelining = measure_pipelining(processes, rate, options.rounds, options.seconds)
    over_link = measure_link(options, npus)
    peaks = measure_peaks(npus, options.host, options.seconds) if npus.simulated else {}
    alone = measure_staging(options.seconds) if npus.simulated else {}
    return Figures(rounds, copy_cpu, pipelining, over_link, peaks, alone)


def measure_rounds(processes: Processes, cases: list[Case], count: int, seconds: float) -> Rounds:
    measured: dict[Case, list[Measured]] = {case: [] for case in cases}
    for number in range(count):
        progress(f"round {number + 1} of {count}, {len(cases)} cases of {seconds:g} s")
        for case in cases:
            measured[case].append(processes.move(case, seconds))
    return Rounds(measured)


def measure_pipelining(processes: Processes, rate: float, rounds: int, seconds: float) -> Pipelining:
    """With simulated copies from the NPU at that rate."""
    progress("pipelined staging, and copying before sending")
    node = processes.initiator(NPU_TO_HOST)
    node.ask("simulator_cost", f"d2h={rate:.3f}/{LATENCY * 1e6:g}")
    moved = work("write", MIB, scattered=False)
    measured = [(node.ask("move", moved, seconds), node.ask("copy_then_move", moved, seconds)) for _ in range(rounds)]
    node.ask("simulator_cost", "")
    return Pipelining(rate, [a.rate for a, _ in measured], [b.rate for _, b in measured])


def measure_link(options: argparse.Namespace, npus: Devices) -> Rounds | None:
    """None where there can be no link."""
    progress(f"a link of {LINK} Gbit/s")
    cases = [case for case in all_cases() if case.pair in PAIRS]
    try:
        with link.made(LINK) as keeper, started(PAIRS, npus, "127.0.0.1", keeper) as processes:
            return measure_rounds(processes, cases, options.rounds, options.seconds)
    except (link.LinkError, OSError) as e:
        progress(f"no link: {e}")
        return None


def measure_staging(seconds: float) -> staging.Rates:
    progress("staging alone")
    return staging.measure(seconds)


def measure_peaks(npus: Devices, host: str, seconds: float) -> dict[str, Peak]:
    progress("memory")
    found: dict[str, list[int]] = {role: [] for role in ROLES}
    for pair in (HOST_TO_HOST, NPU_TO_NPU):
        with started([pair], npus, host) as processes:
            for block in BLOCKS:
                for operation in OPERATIONS:
                    processes.move(Case(pair, work(operation, block)), seconds)
            for role in ROLES:
                node = processes.nodes[pair.node(role)]
                found[role].append(node.ask("peak_memory"))
                if pair == NPU_TO_NPU:
                    allocated = node.ask("simulator_report")["leaked"]
                    found[role] += [allocated["host_bytes"], allocated["device_bytes"] - MEMORY]
    return {role: Peak(*sizes) for role, sizes in found.items()}


def report(options: argparse.Namespace, npus: Devices, figures: Figures) -> None:
    context = {
        "kvferry": __version__,
        "npu": npus.told,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}",
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    print(f"kvferry {__version__} on {context['machine']}; {npus.told}")
    print(
        f"Medians of {options.rounds} rounds of {options.seconds:g} s; blocks are scattered on both sides; {IN_FLIGHT}"
    )
    print(f"batches of {size_text(BATCH)}, or of one larger block, in flight; 1 GB/s is 10^9 bytes a second.")
    for part in tables(figures):
        print(f"\n{part}")
    compared = comparisons(figures) if npus.simulated else []
    if compared:
        print("\n" + table(["compared", "measured", "wanted", "reached"], [each.row() for each in compared]))
    write_files(options.output, figures, compared, context)


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure transfers between host memory and NPUs.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.15, metavar="S", help="of each case and round (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address of this machine to use (%(default)s)")
    parser.add_argument("--output", type=Path, default="build/bench", metavar="FOLDER", help="for files (%(default)s)")
    options = parser.parse_args()
    try:
        npus = find_npus()
        report(options, npus, measure(options, npus))
    except (DemoError, NodeError, subprocess.CalledProcessError) as e:
        print(f"the benchmark failed: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
