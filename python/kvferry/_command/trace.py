"""kvferry trace merge FILE...: the traces of several processes as one, with the clock of the first.

Each file has the times of its machine's clock. How far two clocks are apart is known from, best first:

1. Both files were written on one machine since it started: they have one clock.
2. An engine of one file has connected to an engine of the other. In its hello's answer that engine told its age, so the
   one file has the moment at which that age began by its own clock, and the other file by the other clock. This may be
   wrong by half the time that the answer took. The way may lead through further files.
3. Both machines have the date.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvferry._command import status
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.output import Output

FORMAT = "kvferry-trace-1"

Trace = dict[str, Any]


class Shift(NamedTuple):
    """What to add to a file's times to get those of another one, in microseconds."""

    us: float
    error: float  # by how much it may be wrong
    source: str  # how it is known

    def then(self, other: Shift) -> Shift:
        """Both, one after the other."""
        return Shift(self.us + other.us, self.error + other.error, max(self.source, other.source, key=SOURCES.index))


MACHINE, HELLO, DATE = SOURCES = ("machine", "hello", "date")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command."""
    traces = [load(path) for path in arguments.files]
    shifts = align(traces)
    merged = merge(traces, shifts)
    write(Path(arguments.output), merged)
    pairs = connected(merged["traceEvents"])
    for path, shift in zip(arguments.files, shifts):
        out.note(f"{path}: {TEXTS[shift.source].format(ms=shift.us / 1e3, error=shift.error)}")
        if shift.source == DATE:
            out.warning(f"{path}: no engine of it has met one of the other files: its times may be wrong by far")
    out.text(f"{arguments.output} has {len(traces)} traces; {pairs} requests have both of their sides in it")
    described = [
        {
            "file": path,
            "shift_us": shift.us,
            "error_us": None if shift.source == DATE else shift.error,
            "by": shift.source,
        }
        for path, shift in zip(arguments.files, shifts)
    ]
    out.result({"output": arguments.output, "files": described, "requests_with_both_sides": pairs})
    return status.OK


TEXTS = {
    MACHINE: "the clock of the same machine",
    HELLO: "moved by {ms:.3f} ms, which engines told each other; at most {error:.0f} µs wrong",
    DATE: "moved by {ms:.3f} ms, by the dates of the machines",
}


def load(path: str) -> Trace:
    """Read a file that an engine has written. CommandError for any other one."""
    try:
        with open(path, encoding="utf-8") as file:
            trace = json.load(file)
        about = trace["otherData"]
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
        for engine in about["engines"]:
            float(engine["began_us"]), str(engine["identity"])
            [(str(c["identity"]), float(c["began_us"]), float(c["error_us"])) for c in engine["clocks"]]
        float(about["unix_seconds_of_zero"]), str(about["boot_id"])
        for event in trace["traceEvents"]:
            float(event["ts"]), int(event["pid"]), str(event["ph"])
    except OSError as e:
        raise CommandError(f"{path} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CommandError(f"{path} was not written by KVFERRY_TRACE_FILE, or is merged already") from e
    return dict(trace)


def align(traces: Sequence[Trace]) -> list[Shift]:
    """For each trace the shift to the clock of the first: along the way with the least error."""
    found: list[Shift | None] = [Shift(0, 0, MACHINE), *[None] * (len(traces) - 1)]
    done: set[int] = set()
    while len(done) < len(traces):
        here = min(
            (i for i, shift in enumerate(found) if shift is not None and i not in done),
            key=lambda i: found[i].error,  # type: ignore[union-attr]
            default=None,
        )
        if here is None:  # none of the others has met one of these
            here = found.index(None)
            found[here] = by_date(traces[here], traces[0])
        done.add(here)
        way = found[here]
        assert way is not None
        for other, trace in enumerate(traces):
            for step in between(trace, traces[here]):
                shift, known = step.then(way), found[other]
                if other not in done and (known is None or shift.error < known.error):
                    found[other] = shift
    return [shift for shift in found if shift is not None]


def between(one: Trace, other: Trace) -> Iterator[Shift]:
    """The shifts from one trace to the clock of the other, as far as it is known without the dates."""
    if one["otherData"]["boot_id"] and one["otherData"]["boot_id"] == other["otherData"]["boot_id"]:
        yield Shift(0, 0, MACHINE)
    for began, clock in met(other, one):
        yield Shift(clock["began_us"] - began, clock["error_us"], HELLO)
    for began, clock in met(one, other):
        yield Shift(began - clock["began_us"], clock["error_us"], HELLO)


def met(initiators: Trace, targets: Trace) -> Iterator[tuple[float, dict[str, Any]]]:
    """When engines of `targets` began by their own clock, and what engines of `initiators` know of that."""
    began = {engine["identity"]: engine["began_us"] for engine in targets["otherData"]["engines"]}
    for engine in initiators["otherData"]["engines"]:
        for clock in engine["clocks"]:
            if began.get(clock["identity"]):  # 0 for an engine that has not listened
                yield began[clock["identity"]], clock


def by_date(one: Trace, other: Trace) -> Shift:
    """The shift from one trace to the clock of the other by the dates of the machines."""
    zeros = [trace["otherData"]["unix_seconds_of_zero"] for trace in (one, other)]
    return Shift((zeros[0] - zeros[1]) * 1e6, float("inf"), DATE)


def merge(traces: Sequence[Trace], shifts: Sequence[Shift]) -> Trace:
    """One trace with the events of all. Each engine keeps a process of its own."""
    events = []
    pids: dict[tuple[int, int], int] = {}
    for number, (trace, shift) in enumerate(zip(traces, shifts)):
        for event in trace["traceEvents"]:
            pid = pids.setdefault((number, event["pid"]), len(pids) + 1)
            at = 0 if event["ph"] == "M" else nanoseconds(event["ts"]) + nanoseconds(shift.us)
            events.append({**event, "pid": pid, "ts": at})
    earliest = min((event["ts"] for event in events if event["ph"] != "M"), default=0)
    for event in events:
        event["ts"] = 0 if event["ph"] == "M" else (event["ts"] - earliest) / 1000
    return {"displayTimeUnit": "ns", "traceEvents": events, "otherData": {"format": FORMAT + "-merged"}}


def nanoseconds(us: float) -> int:
    """Microseconds as the whole number of nanoseconds that they stand for."""
    return round(us * 1000)


def connected(events: Sequence[dict[str, Any]]) -> int:
    """How many requests have both of their sides."""
    begun, served = ({event["id"] for event in events if event["ph"] == phase} for phase in ("s", "f"))
    return len(begun & served)


def write(path: Path, trace: Trace) -> None:
    """Replace a file; the old one stays until the new one is complete. A link is replaced, and nothing but a file."""
    try:
        if path.exists() and not path.is_file():
            raise CommandError(f"{path} is not a regular file")
        handle, hidden = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(trace, file)
            os.replace(hidden, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
    except OSError as e:
        raise CommandError(f"{path} cannot be written: {e.strerror}") from e


COMMAND = Command(
    name="trace",
    help="merge traces of several processes into one",
    description=(
        "Merge the traces that engines of several processes or machines have written (KVFERRY_TRACE_FILE), for"
        " https://ui.perfetto.dev. The times get the clock of the first file. Arrows lead from each request to the same"
        " request at the peer."
    ),
    run=run,
    options=(
        option("action", choices=("merge",), help="what to do: merge"),
        option("files", nargs="+", metavar="FILE", help="a trace"),
        option("--output", required=True, metavar="FILE", help="where to write the merged trace"),
    ),
    examples=(
        Example("kvferry trace merge prefill.json decode.json --output both.json", "see both sides of each request"),
    ),
)
