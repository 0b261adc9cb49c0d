"""What the benchmark of NPUs says: tables in Markdown, which read well as they are, and files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plot
import staging
from cases import (
    BLOCKS,
    GATHERED,
    HOST_TO_HOST,
    HOST_TO_NPU,
    KIB,
    LINK,
    NPU_TO_HOST,
    ONE_BY_ONE,
    OPERATIONS,
    PAIRS,
    POOL,
    SMALL,
    STAGED,
    Pair,
    one_by_one,
)
from figures import Figures, Rounds
from kvferry._places import size_text
from tables import median_ratio, table

# Tables


def tables(figures: Figures) -> Iterator[str]:
    yield from overview(figures.rounds, "over the loopback interface")
    if figures.over_link:
        yield from overview(figures.over_link, f"over a link of {LINK} Gbit/s")
    yield from processor_time(figures)
    yield "WRITE of small blocks over the loopback interface, GB/s, by how they are copied from or to the NPU"
    pairs = {"npu -> host": NPU_TO_HOST, "host -> npu": HOST_TO_NPU}
    rows = [ways_row(figures.rounds, name, pair, block) for name, pair in pairs.items() for block in SMALL]
    yield table(["", "block", "host -> host", ONE_BY_ONE, GATHERED], rows)
    if figures.staging:
        yield "Staging alone, without a network, GB/s"
        header = ["", "block", "one by one, by arithmetic", ONE_BY_ONE, GATHERED]
        yield table(header, [staging_row(figures.staging, way, block) for way in ("out", "in") for block in STAGED])


def overview(rounds: Rounds, where: str) -> Iterator[str]:
    for operation, arrow in OPERATIONS.items():
        yield f"{operation.upper()} {where}, GB/s, and in brackets the ratio to host {arrow} host"
        header = ["block", *(f"{pair.initiator} {arrow} {pair.target}" for pair in PAIRS)]
        yield table(header, [overview_row(rounds, operation, block) for block in BLOCKS])


def processor_time(figures: Figures) -> Iterator[str]:
    title = "WRITE over the loopback interface, seconds of processor time for 1 GB, both processes together"
    if figures.copy_cpu:
        title += (
            f";\nin brackets without simulated copies (two of gathered blocks), about {figures.copy_cpu:.2f} s each"
        )
    yield title
    header = ["block", *(f"{pair.initiator} -> {pair.target}" for pair in PAIRS)]
    yield table(header, [cpu_row(figures, block) for block in BLOCKS])


def overview_row(rounds: Rounds, operation: str, block: int) -> list[str]:
    cells = [f"{rounds.rate(HOST_TO_HOST, operation, block):.2f}"]
    for pair in PAIRS[1:]:
        ratio = rounds.ratio(pair, HOST_TO_HOST, operation, block)
        cells.append(f"{rounds.rate(pair, operation, block):.2f} ({ratio:.2f})")
    return [size_text(block), *cells]


def cpu_row(figures: Figures, block: int) -> list[str]:
    cells = []
    for pair in PAIRS:
        seconds = figures.rounds.cpu(pair, "write", block)
        copies = [pair.initiator, pair.target].count("npu") * (2 if block in SMALL else 1) * figures.copy_cpu
        cells.append(f"{seconds:.2f}" + (f" ({seconds - copies:.2f})" if copies else ""))
    return [size_text(block), *cells]


def ways_row(rounds: Rounds, name: str, pair: Pair, block: int) -> list[str]:
    pairs = (HOST_TO_HOST, pair._replace(way=ONE_BY_ONE), pair)
    return [name, size_text(block), *(f"{rounds.rate(pair, 'write', block):.2f}" for pair in pairs)]


def staging_row(rates: staging.Rates, direction: str, block: int) -> list[str]:
    name = {"out": "from the NPU", "in": "to the NPU"}[direction]
    measured = [rates[direction, block, way] for way in (ONE_BY_ONE, GATHERED)]
    return [name, size_text(block), *(f"{rate:.2f}" for rate in (one_by_one(block), *measured))]


# Comparisons


class Comparison(NamedTuple):
    """A measured ratio and what it should reach."""

    what: str
    measured: float
    wanted: float
    at_most: bool = False  # else at least

    def row(self) -> list[str]:
        reached = self.measured <= self.wanted if self.at_most else self.measured >= self.wanted
        wanted = f"{self.wanted:.2f} at {'most' if self.at_most else 'least'}"
        return [self.what, f"{self.measured:.2f}", wanted, "yes" if reached else "no"]


def comparisons(figures: Figures) -> list[Comparison]:
    """What is wanted where copies cost what they cost in the simulator by default."""
    over_link = with_host(figures.over_link, f"{LINK} Gbit/s") if figures.over_link else ()
    loopback = with_host(figures.rounds, "loopback")
    return [*over_link, *loopback, *small_blocks(figures), *pipelining(figures), *memory(figures)]


def with_host(rounds: Rounds, where: str) -> Iterator[Comparison]:
    for block in (block for block in BLOCKS if block >= 64 * KIB):
        for operation, arrow in OPERATIONS.items():
            ratio = rounds.ratio(NPU_TO_HOST, HOST_TO_HOST, operation, block)
            yield Comparison(f"{where}, {size_text(block)}: npu {arrow} host / host {arrow} host", ratio, 0.9)


def small_blocks(figures: Figures) -> Iterator[Comparison]:
    """Where the network is the bound, host to host does not reach what is wanted, either: then staging alone tells."""
    rounds = figures.rounds
    for block in (4 * KIB, 16 * KIB):
        size, bound = size_text(block), one_by_one(block)
        slow = NPU_TO_HOST._replace(way=ONE_BY_ONE)
        ratio = rounds.ratio(NPU_TO_HOST, slow, "write", block)
        yield Comparison(f"{size}: npu -> host / the same, copied one by one", ratio, 4)
        host = rounds.rate(HOST_TO_HOST, "write", block) / bound
        limit = f" (host -> host: {host:.2f})" if host < 4 else ""
        ratio = rounds.rate(NPU_TO_HOST, "write", block) / bound
        yield Comparison(f"{size}: npu -> host / copies one by one, by arithmetic{limit}", ratio, 4)
        if rate := figures.staging.get(("out", block, GATHERED)):
            yield Comparison(f"{size}: staging alone / copies one by one, by arithmetic", rate / bound, 4)


def pipelining(figures: Figures) -> Iterator[Comparison]:
    if measured := figures.pipelining:
        ratio = median_ratio(measured.pipelined, measured.copied_first)
        what = f"1 MiB: pipelined / copied first, then sent; copies at {measured.copy_rate:.2f} GB/s"
        yield Comparison(what, ratio, 1.4)


def memory(figures: Figures) -> Iterator[Comparison]:
    for role, peak in figures.peaks.items():
        yield Comparison(f"page-locked memory of the {role} / its pool", peak.pinned / POOL, 1, at_most=True)
        more = peak.npu - peak.host - peak.device
        yield Comparison(f"memory of the {role} beyond that for host -> host / its pool", more / POOL, 1, at_most=True)


# Files


def write_files(folder: Path, figures: Figures, compared: Sequence[Comparison], context: dict[str, Any]) -> None:
    """heterogeneous.json, heterogeneous.svg and, where staging was measured alone, staging.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heterogeneous.json").write_text(json.dumps(everything(figures, compared, context), indent=1) + "\n")
    ticks = [(block, size_text(block)) for block in BLOCKS]
    lines = {"host -> host": rates(figures.rounds, HOST_TO_HOST, BLOCKS)}
    lines["npu -> host"] = rates(figures.rounds, NPU_TO_HOST, BLOCKS)
    lines["npu -> host, one by one"] = rates(figures.rounds, NPU_TO_HOST._replace(way=ONE_BY_ONE), SMALL)
    (folder / "heterogeneous.svg").write_text(plot.svg("WRITE of scattered blocks", lines, ticks))
    if figures.staging:
        ways = (GATHERED, ONE_BY_ONE)
        lines = {way: {block: figures.staging["out", block, way] for block in STAGED} for way in ways}
        (folder / "staging.svg").write_text(plot.svg("From the NPU, without a network", lines, ticks[: len(STAGED)]))


def rates(rounds: Rounds, pair: Pair, blocks: Sequence[int]) -> dict[int, float]:
    return {block: rounds.rate(pair, "write", block) for block in blocks}


def everything(figures: Figures, compared: Sequence[Comparison], context: dict[str, Any]) -> dict[str, Any]:
    return {
        **context,
        "loopback": list(entries(figures.rounds)),
        "link_gbit_s": LINK,
        "link": list(entries(figures.over_link)) if figures.over_link else None,
        "simulated_copy_cpu_s_per_GB": round(figures.copy_cpu, 4),
        "pipelining": figures.pipelining and figures.pipelining._asdict(),
        "peaks": {role: peak._asdict() for role, peak in figures.peaks.items()},
        "staging": [
            {"direction": direction, "block": block, "way": way, "GBps": rate}
            for (direction, block, way), rate in figures.staging.items()
        ],
        "comparisons": [comparison._asdict() for comparison in compared],
    }


def entries(rounds: Rounds) -> Iterator[dict[str, Any]]:
    for case, measured in rounds.measured.items():
        yield {
            **case.pair._asdict(),
            **case.work._asdict(),
            "GBps": [round(each.rate, 4) for each in measured],
            "cpu_s_per_GB": [round(each.cpu / each.bytes * 1e9, 4) for each in measured],
        }
