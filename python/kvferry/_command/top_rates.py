"""What an engine has done between two readings."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any, NamedTuple

from kvferry._command.top_sources import Reading
from kvferry.stats import Durations, Moved, Stats


class PeerRates(NamedTuple):
    """A peer of an engine. Rates are bytes a second."""

    peer: str
    role: str  # of the engine: initiator or target
    read: float
    write: float
    queued: int  # bytes
    in_flight: int  # bytes
    connections: int
    failures: int  # since the engine was made
    retries: int


class EngineRates(NamedTuple):
    """An engine. Rates are in a second; they are those since the engine was made where there is no reading before."""

    engine: str
    identity: str
    source: str
    pid: int | None
    uptime: float  # seconds
    read: float  # bytes that this engine has read from peers
    write: float
    served_read: float  # bytes that peers have read from this engine
    served_write: float
    batches: float
    p50: float | None  # of batches, seconds; None where none has ended
    p99: float | None
    queued: int  # bytes that wait to be sent
    in_flight: int  # bytes that were sent and not acknowledged
    unfinished: int  # requests
    failures: int  # requests, since the engine was made
    new_failures: int  # since the reading before
    sessions: int  # data connections of peers
    threads: int
    open_files: int
    resident: int  # bytes
    peers: list[PeerRates]

    @property
    def out(self) -> float:
        """Bytes that leave, a second."""
        return self.write + self.served_read

    @property
    def into(self) -> float:
        """Bytes that arrive, a second."""
        return self.read + self.served_write

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {**self._asdict(), "peers": [peer._asdict() for peer in self.peers]}


def rates(before: Iterable[Reading], after: Iterable[Reading]) -> list[EngineRates]:
    """The engines of the later readings, the busiest first."""
    known = {(r.source, s["identity"]): (r.time, s) for r in before for s in r.engines}
    found = []
    for reading in after:
        for engine in reading.engines:
            began, former = known.get((reading.source, engine["identity"]), (None, None))
            passed = reading.time - began if began is not None else engine["uptime_seconds"]
            found.append(_engine(reading, engine, former, max(passed, 1e-3)))
    return sorted(found, key=lambda e: (-(e.out + e.into), e.engine))


def _engine(reading: Reading, now: Stats, before: Stats | None, passed: float) -> EngineRates:
    peers = [*_initiated(now, before, passed), *_targeted(now, before, passed)]
    initiated = [peer for peer in peers if peer.role == "initiator"]
    targeted = [peer for peer in peers if peer.role == "target"]
    batches = _difference(now["batches"].values(), before["batches"].values() if before else ())
    failures = sum(now["failures"].values())
    return EngineRates(
        engine=now["engine"],
        identity=now["identity"],
        source=reading.source.address,
        pid=reading.source.pid,
        uptime=now["uptime_seconds"],
        read=sum((peer.read for peer in initiated), 0.0),
        write=sum((peer.write for peer in initiated), 0.0),
        served_read=sum((peer.read for peer in targeted), 0.0),
        served_write=sum((peer.write for peer in targeted), 0.0),
        batches=batches.total / passed,
        p50=batches.percentile(0.5),
        p99=batches.percentile(0.99),
        queued=sum(peer.queued for peer in initiated),
        in_flight=sum(peer.in_flight for peer in initiated),
        unfinished=now["in_flight"]["requests"],
        failures=failures,
        new_failures=failures - sum(before["failures"].values()) if before else 0,
        sessions=now["sessions"]["open"],
        threads=now["process"]["threads"],
        open_files=now["process"]["open_files"],
        resident=now["process"]["resident_bytes"],
        peers=sorted(peers, key=lambda p: (-(p.read + p.write), p.peer)),
    )


def _initiated(now: Stats, before: Stats | None, passed: float) -> list[PeerRates]:
    former = {peer["peer"]: peer for peer in before["initiator"]} if before else {}
    found = []
    for peer in now["initiator"]:
        earlier = former.get(peer["peer"])
        found.append(
            PeerRates(
                peer=peer["peer"],
                role="initiator",
                read=_rate(peer["read"], earlier and earlier["read"], passed),
                write=_rate(peer["write"], earlier and earlier["write"], passed),
                queued=peer["queued_bytes"],
                in_flight=peer["in_flight_bytes"],
                connections=peer["connections"]["idle"] + peer["connections"]["busy"],
                failures=sum(peer["failures"].values()),
                retries=peer["retries"],
            )
        )
    return found


def _targeted(now: Stats, before: Stats | None, passed: float) -> list[PeerRates]:
    former = {peer["peer"]: peer for peer in before["target"]} if before else {}
    found = []
    for peer in now["target"]:
        earlier = former.get(peer["peer"])
        found.append(
            PeerRates(
                peer=peer["peer"],
                role="target",
                read=_rate(peer["read"], earlier and earlier["read"], passed),
                write=_rate(peer["write"], earlier and earlier["write"], passed),
                queued=0,
                in_flight=0,
                connections=peer["connections"],
                failures=peer["lost"],
                retries=0,
            )
        )
    return found


def _rate(now: Moved, before: Moved | None, passed: float) -> float:
    """Bytes a second. What is less than before, as a peer that was forgotten, counts from 0."""
    moved = sum(now["bytes"].values()) - (sum(before["bytes"].values()) if before else 0)
    return max(0, moved) / passed


class Batches(NamedTuple):
    """How long batches took: bounds in seconds, how many batches did not exceed each, and how many there were."""

    bounds: list[float]
    counts: list[int]
    total: int

    def percentile(self, share: float) -> float | None:
        """The bound that this share of them did not exceed, the last one where they did; None for no batches."""
        if self.total <= 0 or not self.bounds:
            return None
        return self.bounds[min(bisect.bisect_left(self.counts, share * self.total), len(self.bounds) - 1)]


def _difference(now: Iterable[Durations], before: Iterable[Durations]) -> Batches:
    """The batches of all kinds since the reading before."""
    counts: dict[float, int] = {}
    total = 0
    for sign, kinds in ((1, now), (-1, before)):
        for kind in kinds:
            total += sign * kind["count"]
            for bucket in kind["buckets"]:
                counts[bucket["le_seconds"]] = counts.get(bucket["le_seconds"], 0) + sign * bucket["count"]
    bounds = sorted(counts)
    return Batches(bounds, [counts[bound] for bound in bounds], total)
