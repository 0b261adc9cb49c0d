"""A strict model of the trace files: what Chrome's trace format demands, and what ours promise beyond it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]

COMMON = {"name", "ph", "ts", "pid", "tid"}
PHASES: dict[str, tuple[set[str], set[str]]] = {  # the keys that events of a phase must have, and those they may have
    "X": ({"dur", "cat"}, {"args"}),
    "i": ({"s", "cat"}, {"args"}),
    "M": ({"args"}, set()),
    "s": ({"id", "cat"}, set()),
    "f": ({"id", "cat", "bp"}, set()),
}
METADATA = {"process_name": str, "thread_name": str, "thread_sort_index": int}


class Trace:
    """A file that keeps to the format; AssertionError for one that does not."""

    def __init__(self, path: Path) -> None:
        self.all = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        assert set(self.all) == {"traceEvents", "displayTimeUnit", "otherData"}
        assert self.all["displayTimeUnit"] in ("ms", "ns")
        self.events: list[Event] = self.all["traceEvents"]
        for event in self.events:
            check_event(event)
        self.spans = [event for event in self.events if event["ph"] == "X"]
        self.check_names()
        self.children = nested(self.spans)
        self.check_flows()

    def engine(self) -> Any:
        """What the file says of its only engine."""
        (engine,) = self.all["otherData"]["engines"]
        return engine

    def named(self, *names: str) -> list[Event]:
        """The spans with these names, in the order of time."""
        return sorted((e for e in self.spans if e["name"] in names), key=begin)

    def of(self, category: str) -> list[Event]:
        """The spans of a category, in the order of time."""
        return sorted((e for e in self.spans if e["cat"] == category), key=begin)

    def within(self, span: Event) -> list[Event]:
        """The spans right inside of one, in the order of time."""
        return sorted(self.children[id(span)], key=begin)

    def track(self, event: Event) -> str:
        """The name of an event's track."""
        (name,) = (
            e["args"]["name"]
            for e in self.events
            if e["name"] == "thread_name" and (e["pid"], e["tid"]) == (event["pid"], event["tid"])
        )
        return str(name)

    def flows(self) -> dict[str, dict[str, Event]]:
        """The ends of each flow, by their phase, as the spans that they are bound to."""
        found: dict[str, dict[str, Event]] = defaultdict(dict)
        for event in self.events:
            if event["ph"] in ("s", "f"):
                found[event["id"]][event["ph"]] = next(
                    span for span in self.spans if binds(span, event) and span["cat"] in ("request", "served")
                )
        return found

    def check_names(self) -> None:
        """Each process and each track with spans has one name."""
        processes = [e["pid"] for e in self.events if e["name"] == "process_name"]
        tracks = [(e["pid"], e["tid"]) for e in self.events if e["name"] == "thread_name"]
        assert len(set(processes)) == len(processes) and len(set(tracks)) == len(tracks)
        for event in self.events:
            assert event["pid"] in processes
            assert event["ph"] == "M" or (event["pid"], event["tid"]) in tracks, event

    def check_flows(self) -> None:
        """A flow has one beginning and one end at most, and each is in a span."""
        ends = [(event["id"], event["ph"]) for event in self.events if event["ph"] in ("s", "f")]
        assert len(set(ends)) == len(ends)
        self.flows()


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def check_event(event: Event) -> None:
    required, optional = PHASES[event["ph"]]
    assert COMMON | required <= set(event) <= COMMON | required | optional, event
    assert isinstance(event["name"], str) and event["name"]
    assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
    for key in {"ts", "dur"} & set(event):
        value = event[key]
        assert isinstance(value, (int, float)) and not isinstance(value, bool), event
        assert math.isfinite(value) and value >= 0, event
    if event["ph"] == "M":
        (key,) = event["args"]
        assert isinstance(event["args"][key], METADATA[event["name"]]), event
    if event["ph"] == "i":
        assert event["s"] == "t", event
    if event["ph"] == "f":
        assert event["bp"] == "e", event
    if event["ph"] in ("s", "f"):
        assert isinstance(event["id"], str) and event["id"], event


def begin(span: Event) -> int:
    """When an event begins, in nanoseconds: the files have no fractions of these."""
    at: float = span["ts"]
    return round(at * 1000)


def end(span: Event) -> int:
    """When a span ends, in nanoseconds."""
    length: float = span["dur"]
    return begin(span) + round(length * 1000)


def binds(span: Event, event: Event) -> bool:
    """Whether an event is bound to a span."""
    same = (span["pid"], span["tid"]) == (event["pid"], event["tid"])
    return same and begin(span) <= begin(event) <= end(span)


def nested(spans: list[Event]) -> dict[int, list[Event]]:
    """The spans right inside of each, by its id(). Two of one track are apart, or one is in the other."""
    children: dict[int, list[Event]] = defaultdict(list)
    for track in by_track(spans):
        around: list[Event] = []
        for span in sorted(track, key=lambda s: (begin(s), -end(s))):
            while around and end(around[-1]) <= begin(span):
                around.pop()
            if around:
                assert end(span) <= end(around[-1]), (around[-1], span)
                children[id(around[-1])].append(span)
            around.append(span)
    return children


def by_track(spans: list[Event]) -> Iterator[list[Event]]:
    tracks = defaultdict(list)
    for span in spans:
        tracks[span["pid"], span["tid"]].append(span)
    yield from tracks.values()
