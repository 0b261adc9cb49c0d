"""The report: tables in Markdown, plots, and everything as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plot
from comparison import busy, crowd, layouts, observed, secured
from comparison.case import MIB, Case, size_text
from comparison.results import (
    DIRECT,
    MOONCAKE,
    NIXL,
    OURS,
    PLAIN,
    Quantity,
    Results,
    cpu,
    medians,
    p50,
    p99,
    rate,
)
from comparison.running import Run
from comparison.sections import SWEEP, batch, one
from comparison.wanted import HEADER, Wanted, wanted
from tables import table

METHOD = """\
Figures are medians of {rounds} rounds of {seconds:g} s for each engine and case, ratios medians of the rounds'
ratios. In each round all engines run one case before any runs the next one; who is not measured is suspended. Blocks
are scattered, every other one of the memory and in another order on the target, unless a case says that they are
adjacent. "TLS" is with a secret, and no shortcut. 1 GB is 10^9 bytes. Both ends run on this machine; "no shortcut"
has kvferry do as between two. Mooncake is taken with the better one of its settings where it is compared with others.
NIXL runs over UCX TCP with segments of 256 KiB, both ends calling it all the time, with lists that are prepared
beforehand. The plain C program sends a header and a payload, and receives a status, for each request. Memory is the
peak of resident memory, less what is registered, less the peak of the same process when it had imported the engine's
module with its native library, and had no engine yet; in brackets with that. Processor time is that of both ends.
Growth is that of kvferry alone. Many peers are not measured with NIXL, which would have to call all the time for
every one of them. A change of layout moves 6 MiB of the heads that both ends have, as a plan, as plain blocks of 64
KiB, or as a list with a range for each run. Lists are prepared beforehand for kvferry and NIXL; Mooncake takes them as
they are, here with queues that are long enough. "load before" tells how many programs were running beside: other work
falsifies the figures."""

CROSSING = "A call with so many neighbours of 8 bytes, microseconds"
SERIES = {
    "lanes": "GB/s over lanes, WRITE 1 MiB x 32 over the loopback interface, same-host shortcut off",
    "round trip": "GB/s over the round trip in ms, WRITE 64 KiB x 64, same-host shortcut off",
    secured.FIRST: "Round trips of the first transfer with a peer, over a round trip of so many ms",
    "peers": "GB/s over the number of peers, WRITE 64 KiB x 16 to each at once, same-host shortcut off",
    "peers, small": "Microseconds for a request over the number of peers, WRITE 4 KiB x 16 to each at once",
    "in flight": "Microseconds for a request of 64 bytes, over the number of them in one batch",
    "regions, registering": "Microseconds to register a region, up to so many",
    "regions, transfer": "Microseconds for a batch of 64 requests to different regions, of so many registered ones",
    "TIME_WAIT": "Sockets in TIME_WAIT, of the two ends, after so many transfers",
    "crossing": CROSSING,
    layouts.POSTING: "Microseconds to plan a change of layout of so many runs, and to start its transfer, from Python",
}
NETWORKS = {
    "loopback": "loopback interface",
    **{busy.where(count): f"loopback interface, beside {count} processes that compute" for count in busy.counts()},
    "link": "link",
    secured.ON_LOOPBACK: "loopback interface, with TLS and without",
    secured.ON_LINK: "link, with TLS and without",
    observed.WHERE: "loopback interface, with metrics, with traces, with both and without",
    layouts.ON_HOST: "shortcut of one host, changes of layout",
    layouts.ON_LOOPBACK: "loopback interface, changes of layout, same-host shortcut off",
    layouts.ON_LINK: "link, changes of layout",
}
BESIDE = {  # of Results.beside: its title, and how it is written
    "alone_p50": ("alone, p50", "{:.0f}"),
    "beside_p50": ("one after the other, p50", "{:.0f}"),
    "beside_p99": ("p99", "{:.0f}"),
    "beside_rate": ("in a second", "{:.0f}"),
    "beside_kept": ("bulk keeps", "{:.2f}"),
    "spaced_p50": ("with 1 ms between two, p50", "{:.0f}"),
    "spaced_p99": ("p99", "{:.0f}"),
    "spaced_kept": ("bulk keeps", "{:.2f}"),
}
PLOTS = {  # file, title, across, upwards, whether upwards is logarithmic
    "lanes": ("lanes", "WRITE 1 MiB x 32 over lanes", "lanes", "GB/s", False),
    "round trip": ("round-trip", "WRITE 64 KiB x 64 over the round trip", "ms", "GB/s", False),
    "peers": ("peers", "WRITE 64 KiB x 16 to each peer", "peers at once", "GB/s", False),
    "peers, small": ("growth-peers", "WRITE 4 KiB x 16 to each peer", "peers at once", "µs for a request", True),
    "in flight": ("growth-in-flight", "Requests of 64 bytes in one batch", "requests", "µs for a request", True),
    "regions, registering": ("growth-registering", "Registering", "registered regions", "µs for a region", True),
    "regions, transfer": ("growth-regions", "64 requests to many regions", "registered regions", "µs", True),
    "TIME_WAIT": ("growth-time-wait", "Sockets in TIME_WAIT", "transfers", "sockets", False),
}


# Tables


def summary(run: Run) -> str:
    """What standard output gets."""
    results = run.results
    parts = [told(run), listed("Could not be run", results.missing), listed("FAILED", results.failures)]
    parts.append(listed("Peers that failed, and were left out from then on", results.peer_failures))
    parts += [table(HEADER, [each.row() for each in rows_wanted(results)])]
    parts += [f"It took {results.seconds:.0f} s. The whole report is in {run.options.output / 'report.md'}"]
    return "\n\n".join(part for part in parts if part)


def told(run: Run) -> str:
    return "\n".join(f"{name}: {text}" for name, text in run.machine.told.items())


def listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", "", *(f"- {line}" for line in lines)]) if lines else ""


def rows_wanted(results: Results) -> list[Wanted]:
    return wanted(results, os.cpu_count() or 1)


def report(run: Run, plots: Iterable[str]) -> str:
    results = run.results
    machine = table(["", "this machine"], [[name, text] for name, text in run.machine.told.items()])
    parts = ["# kvferry beside others", machine, METHOD.format(**vars(run.options))]
    parts += [listed("Could not be run", results.missing), listed("Failed", results.failures)]
    parts.append(listed("Peers that failed, and were left out from then on", results.peer_failures))
    parts += ["## Wanted and measured", table(HEADER, [each.row() for each in rows_wanted(results)])]
    for where in results.cases:
        parts += [f"## Over the {NETWORKS[where]}", *cases(results, where)]
    if results.beside:
        parts += ["A 4 KiB request beside a bulk transfer to the same peer, microseconds", beside(results)]
    if results.crowd:
        parts += ["## A 4 KiB request beside peers that move 1 MiB blocks to or from the same engine, microseconds"]
        parts += [crowd.report(results)]
    if results.iperf:
        parts.append(f"iperf3 over the link: {statistics.median(results.iperf):.2f} GB/s")
    if results.series:
        parts += ["## Scaling and growth", *series_tables(results)]
    if results.memory:
        parts += ["## What engines take", resources(results)]
    parts += ["## Plots", *(f"![{name}]({name}.svg)" for name in plots)]
    count = sum(map(len, results.checked.values()))
    parts.append(f"Every byte of {count} cases was compared. All of it took {results.seconds:.0f} s.")
    return "\n\n".join(part for part in parts if part) + "\n"


def cases(results: Results, where: str) -> Iterator[str]:
    found = results.cases[where]
    batches = [case for case in found if case.blocks > 1]
    singles = [case for case in found if case.blocks == 1]
    yield "GB/s"
    yield engines(results, where, batches, rate, "{:.2f}")
    yield "Seconds of processor time for 1 GB, both ends"
    yield engines(results, where, batches, cpu, "{:.2f}")
    if singles:
        yield "One request, p50 in microseconds"
        yield engines(results, where, singles, p50, "{:.0f}")
        yield "One request, p99 in microseconds"
        yield engines(results, where, singles, p99, "{:.0f}")


def engines(results: Results, where: str, rows: Sequence[Case], quantity: Quantity, form: str) -> str:
    names = list(dict.fromkeys(name for case in rows for name in results.cases[where][case]))
    cells = []
    for case in rows:
        values = [results.median(where, case, name, quantity) for name in names]
        cells.append([str(case), *("" if value is None else form.format(value) for value in values)])
    return table(["case", *names], cells)


def beside(results: Results) -> str:
    rows = []
    for name, rounds in results.beside.items():
        values = [statistics.median(each[key] for each in rounds) for key in BESIDE]
        rows.append([name, *(form.format(value) for (_, form), value in zip(BESIDE.values(), values))])
    return table(["", *(title for title, _ in BESIDE.values())], rows)


def series_tables(results: Results) -> Iterator[str]:
    for what, title in SERIES.items():
        if lines := results.series.get(what):
            yield title
            by_line = {name: medians(series) for name, series in lines.items()}
            xs = sorted({x for series in by_line.values() for x in series})
            rows = [[number(x), *(short(series.get(x)) for series in by_line.values())] for x in xs]
            yield table(["", *by_line], rows)


def number(x: float) -> str:
    return f"{x:,.3f}".rstrip("0").rstrip(".")


def short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def resources(results: Results) -> str:
    rows = []
    for name, sides in results.memory.items():
        extra = [
            f"{(m['peak'] - m['registered'] - m['bare']) / MIB:.1f} ({(m['peak'] - m['registered']) / MIB:.1f})"
            for m in sides.values()
        ]
        rows.append([name, *extra, f"{results.idle[name]:.3f}"])
    return table(["", "initiator, MiB beside", "target, MiB beside", "idle pair, processor s a second"], rows)


# Plots


def plots(results: Results) -> Iterator[tuple[str, str]]:
    """Names of files, and pictures."""
    if "loopback" in results.cases:
        ticks = [(float(block), size_text(block)) for block in sorted(SWEEP)]
        batches = {block: batch("write", block) for block in sorted(SWEEP)}
        singles = {block: one("write", block) for block in sorted(SWEEP)}
        lines = over_blocks(results, batches, rate, PLAIN[4])
        yield "blocks", plot.svg("WRITE of scattered blocks, over the loopback interface", lines, ticks)
        lines = over_blocks(results, singles, p50, PLAIN[1])
        title = "One WRITE, over the loopback interface"
        yield "latency", plot.svg(title, lines, ticks, upwards="p50 in µs", logarithmic=True)
    for what, (name, title, across, upwards, logarithmic) in PLOTS.items():
        lines = {line: medians(series) for line, series in results.series.get(what, {}).items()}
        xs = sorted({x for series in lines.values() for x in series})
        if len(xs) > 1:
            yield name, plot.svg(title, lines, [(x, number(x)) for x in xs], across, upwards, logarithmic)


def over_blocks(
    results: Results, by_block: Mapping[int, Case], quantity: Quantity, plain: str
) -> dict[str, dict[float, float]]:
    lines: dict[str, dict[float, float]] = {}
    for block, case in by_block.items():
        mooncake = results.best("loopback", case, MOONCAKE, quantity is p50)
        for line, name in ((OURS, OURS), (DIRECT, DIRECT), (MOONCAKE, mooncake), (NIXL, NIXL), (plain, plain)):
            value = results.median("loopback", case, name, quantity)
            if value is not None:
                lines.setdefault(line, {})[float(block)] = value
    return lines


# Files


def write(folder: Path, run: Run) -> None:
    """report.md, comparison.json, and plots."""
    pictures = dict(plots(run.results))
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    (folder / "report.md").write_text(report(run, pictures), encoding="utf-8")
    (folder / "comparison.json").write_text(json.dumps(everything(run), indent=1) + "\n", encoding="utf-8")


def everything(run: Run) -> dict[str, Any]:
    results = dataclasses.asdict(run.results)
    results["cases"] = list(entries(run.results))
    settings = {name: value for name, value in vars(run.options).items() if name != "output"}
    compared = [{**each._asdict(), "reached": each.reached(each.measured)} for each in rows_wanted(run.results)]
    return {"machine": run.machine.told, "options": settings, **results, "wanted": compared}


def entries(results: Results) -> Iterator[dict[str, Any]]:
    for where, found in results.cases.items():
        for case, by_name in found.items():
            for name, measured in by_name.items():
                rounds = [{**each._asdict(), "GBps": round(each.rate, 4)} for each in measured]
                yield {"network": where, "case": str(case), **case._asdict(), "engine": name, "rounds": rounds}
