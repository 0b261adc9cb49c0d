"""kvferry ping PEER: how long a peer takes to answer, by its handshake port and by its data port.

Each ping is two requests: a probe, on a connection of its own, and a READ of a few bytes of memory that the peer
offers, on the connection that data uses. Neither changes anything at the peer.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from typing import Any, NamedTuple

from kvferry._bindings import KVFERRY_ACCESS_NONE, OPCODE_READ
from kvferry._command import status
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.engines import ENGINE, P2P, describe, engine, open_peer, quiet_engine
from kvferry._command.output import Output
from kvferry._engine import Engine
from kvferry._ffi import pack_u64
from kvferry._options import positive, seconds, takes
from kvferry._places import HostMemory
from kvferry._texts import Description

LARGEST = 1 << 20  # bytes of a READ


class Times:
    """How long the answers of one kind took, in seconds."""

    def __init__(self) -> None:
        self.asked = 0
        self.answered = 0
        self.least = math.inf
        self.most = 0.0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, taken: float | None) -> None:
        """Count a request: what its answer took, or None where there was none."""
        self.asked += 1
        if taken is not None:
            self.answered += 1
            self.least, self.most = min(self.least, taken), max(self.most, taken)
            self._sum += taken
            self._squares += taken * taken

    @property
    def average(self) -> float:
        return self._sum / self.answered

    @property
    def deviation(self) -> float:
        """The mean deviation, as ping(8) has it."""
        return math.sqrt(max(0.0, self._squares / self.answered - self.average**2))

    def described(self) -> dict[str, Any]:
        """The times as --json has them."""
        counted: dict[str, Any] = {"asked": self.asked, "answered": self.answered}
        if self.answered:
            counted.update(
                min_seconds=self.least, avg_seconds=self.average, max_seconds=self.most, mdev_seconds=self.deviation
            )
        return counted

    def line(self, what: str) -> str:
        """The times as the statistics have them."""
        lost = 100 * (self.asked - self.answered) / self.asked if self.asked else 0
        text = f"{what}: {self.asked} asked, {self.answered} answered, {lost:.0f}% without an answer"
        if self.answered:
            shown = "/".join(f"{t * 1e3:.3f}" for t in (self.least, self.average, self.most, self.deviation))
            text += f", min/avg/max/mdev {shown} ms"
        return text


class Reading(NamedTuple):
    """The READ of a ping."""

    segment: int
    remote: int
    memory: HostMemory
    size: int


class Pinger:
    """Asks one peer."""

    def __init__(self, made: Engine, peer: str, timeout: float, reading: Reading | None) -> None:
        self._engine, self._peer, self._timeout, self._reading = made, peer, timeout, reading
        self.probes, self.reads = Times(), Times()
        self.errors: list[str] = []  # of the latest ping

    def ping(self) -> str:
        """One ping, as a line."""
        self.errors = []
        parts = [f"handshake {self._timed(self.probes, self._probe)}"]
        if self._reading is not None:
            parts.append(f"read {self._timed(self.reads, self._read)}")
        return ", ".join(parts)

    def _timed(self, times: Times, ask: Any) -> str:
        began = time.perf_counter()
        code = ask()
        taken = time.perf_counter() - began
        if code != 0:
            times.add(None)
            self.errors.append(self._engine.last_error() or "no answer in time")
            return "without an answer"
        times.add(taken)
        return f"{taken * 1e3:.3f} ms"

    def _probe(self) -> int:
        return self._engine.probe(self._peer, self._timeout)

    def _read(self) -> int:
        reading = self._reading
        assert reading is not None
        here, there = pack_u64(reading.memory.address), pack_u64(reading.remote)
        return self._engine.transfer(
            OPCODE_READ, reading.segment, here, there, pack_u64(reading.size), 1, None, self._timeout
        )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command. It has failed where the peer has not answered once."""
    quiet_engine(out)
    memory = HostMemory(LARGEST)
    with engine(arguments, arguments.peer if arguments.metadata == P2P else None, memory) as made:
        reading, described = prepare(made, arguments, memory, out)
        pinger = Pinger(made, arguments.peer, arguments.timeout, reading)
        try:
            _pings(pinger, arguments, out)
        except KeyboardInterrupt:
            out.note("")
        out.note(f"--- {arguments.peer} ---")
        out.text(pinger.probes.line("handshake"))
        result = {
            "peer": arguments.peer,
            "kind": described and described["kind"],
            "handshake": pinger.probes.described(),
        }
        if reading is not None:
            out.text(pinger.reads.line(f"read of {reading.size} bytes"))
            result["read"] = {"bytes": reading.size, **pinger.reads.described()}
        out.result(result)
        return status.OK if pinger.probes.answered or pinger.reads.answered else status.FAILED


def prepare(
    made: Engine, arguments: argparse.Namespace, memory: HostMemory, out: Output
) -> tuple[Reading | None, Description | None]:
    """Find out what the peer offers, and what of it can be read; None where it does not answer."""
    try:
        described = describe(made, arguments.peer, arguments.timeout)
        segment = open_peer(made, arguments.peer, arguments.timeout)
    except CommandError as e:
        out.warning(str(e))
        return None, None
    buffer = next((b for b in described["buffers"] if b["access"] != "write" and b["length"] >= arguments.size), None)
    out.note(f"{arguments.peer} is a {described['kind']} engine, its data port is {described['data_address']}")
    if buffer is None:
        out.note(f"it offers no {arguments.size} bytes of memory to read")
        return None, described
    if made.register(memory.address, memory.size, memory.location, KVFERRY_ACCESS_NONE) != 0:
        raise CommandError(f"memory of this side cannot be registered: {made.last_error()}")
    return Reading(segment, buffer["address"], memory, arguments.size), described


def _pings(pinger: Pinger, arguments: argparse.Namespace, out: Output) -> None:
    began = time.monotonic()
    for number in itertools.count(1):
        line = pinger.ping()
        out.note(f"{number}: {line}")
        for error in pinger.errors:
            out.detail(f"   {error}")
        if number == arguments.count:
            return
        pause = began + number * arguments.interval - time.monotonic()
        time.sleep(max(0.0, pause))


@takes("a whole number from 1 to 1M, perhaps with K or M after it")
def size(text: str) -> int:
    """A number of bytes for a READ; ValueError for one that is too large."""
    number = positive(text)
    if number > LARGEST:
        raise ValueError(text)
    return number


COMMAND = Command(
    name="ping",
    help="measure how long a peer takes to answer",
    description="Measure how long a peer takes to answer: a probe at its handshake port, on a connection of its own,"
    " and a READ of memory that it offers, on the connection of data. The first READ opens that connection. Nothing"
    " changes at the peer. Ctrl-C ends it and prints the statistics.",
    run=run,
    options=(
        option("peer", metavar="PEER", help="the peer's name, as host:port"),
        option("-c", "--count", type=positive, metavar="N", help="end after so many pings (none)"),
        option(
            "-i", "--interval", type=seconds, default=1.0, metavar="S", help="seconds between two pings (%(default)s)"
        ),
        option("-W", "--timeout", type=seconds, default=5.0, metavar="S", help="seconds for an answer (%(default)s)"),
        option("-s", "--size", type=size, default=8, metavar="BYTES", help="bytes of a READ, 1M at most (%(default)s)"),
        *ENGINE,
    ),
    examples=(Example("kvferry ping 10.0.0.2:15234 -c 5", "five pings, a second apart"),),
)
