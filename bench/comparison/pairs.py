"""Pairs of processes that move blocks, and the plain C program, as seen from the one that measures them.

Who is not asked is suspended, so that only one pair at a time has the processors, also of engines that call all the
time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union

from comparison.case import Case

BENCH = Path(__file__).resolve().parents[1]
ANSWER_TIME = 45.0  # seconds until a process that does not answer is given up
IN_FLIGHT = 64  # requests on a connection of the plain C program

# What belongs to this interpreter, or is set for one engine alone.
NOT_FOR_PEERS = ("PYTHONPATH", "PYTHONHOME", "KVFERRY_")
SETTINGS = ("MC_", "UCX_", "NIXL_", "KVFERRY_SAME_HOST", "KVFERRY_POLL_US", "KVFERRY_SEC", "KVFERRY_TLS_")


class EndError(Exception):
    """A process failed; the text says which, and why."""


class PeerError(EndError):
    """The process was not one of ours."""


class Setup(NamedTuple):
    """Engines at both ends, and their settings."""

    name: str
    initiator: str  # "ours", "mooncake" or "nixl"
    target: str
    settings: Mapping[str, str] = {}
    places: tuple[str, str] = ("host", "host")  # where the memory of the initiator and of the target is

    @property
    def kinds(self) -> set[str]:
        return {self.initiator, self.target}

    def place(self, side: str) -> str:
        return self.places[side == "target"]


class Network(NamedTuple):
    """Where the ends are."""

    initiator: str  # addresses
    target: str
    interface: str
    keepers: tuple[int, int] | None = None  # processes of the network namespaces of the two, where they have any

    def keeper(self, side: str) -> list[str]:
        return [] if self.keepers is None else [str(self.keepers[side == "target"])]

    def enter(self, side: str) -> list[str]:
        """What to put before a command that is to run at that side."""
        return [] if self.keepers is None else ["nsenter", f"--net=/proc/{self.keepers[side == 'target']}/ns/net"]


LOOPBACK = Network("127.0.0.1", "127.0.0.1", "lo")


class Measured(NamedTuple):
    """One run of a case."""

    seconds: float
    bytes: int
    p50: float  # microseconds of a call; 0 where calls were not timed
    p99: float
    cpu: float  # seconds of processor time for a GB, of both ends

    @property
    def rate(self) -> float:
        """GB/s, of 10^9 bytes."""
        return self.bytes / self.seconds / 1e9


class End:
    """A process of end.py. To be closed."""

    def __init__(
        self,
        python: str,
        kind: str,
        side: str,
        network: Network,
        settings: Mapping[str, str],
        log: Path,
        place: str,
        *sizes: int,
    ) -> None:
        """Start it: in that interpreter, with that much memory at that place, of which so much is registered."""
        self._name = f"{kind} {side}"
        self._error = EndError if kind == "ours" else PeerError
        command = [python, "-m", "comparison.end", kind, getattr(network, side), place, *map(str, sizes)]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, *network.keeper(side)],
                cwd=BENCH,
                env={**environment(kind), **settings},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._pending = b""
        self._log = log

    def begun(self) -> tuple[str, int]:
        """The place of the engine, once it is there."""
        place: tuple[str, int] = self.result("the start")
        return place

    def ask(self, request: str, *arguments: Any) -> Any:
        """What a public method of end.Served returns. EndError when it raises, or the process ends."""
        self.begin(request, *arguments)
        return self.result(request)

    def begin(self, request: str, *arguments: Any) -> None:
        """The first half of ask: the process does it meanwhile."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps([request, *arguments]).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as e:
            raise self._error(f"{self._name} ended before {request}: see {self._log}") from e

    def result(self, request: str) -> Any:
        """The second half of ask."""
        assert self.process.stdout
        while b"\n" not in self._pending:
            if not select.select([self.process.stdout], [], [], ANSWER_TIME)[0]:
                raise self._error(f"{self._name}: {request} is not done within {ANSWER_TIME:.0f} s")
            read = os.read(self.process.stdout.fileno(), 1 << 20)
            if not read:
                status = self.process.wait()
                raise self._error(f"{self._name} ended at {request}, with status {status}: see {self._log}")
            self._pending += read
        line, self._pending = self._pending.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(f"{self._name}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End it as it is: nothing is measured any more."""
        self.process.kill()
        self.process.communicate()


def environment(kind: str) -> dict[str, str]:
    """Of a process with that engine, without what others are set by."""
    dropped = SETTINGS if kind == "ours" else (*SETTINGS, *NOT_FOR_PEERS)
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


class Star:
    """An initiator and processes to move to or from. To be closed."""

    def __init__(
        self,
        setup: Setup,
        pythons: Mapping[str, str],
        logs: Path,
        network: Network,
        size: int,
        registered: int | None = None,
        targets: int = 1,
    ) -> None:
        """Start them, with so much memory each of which so much is registered: all of it if none is said."""
        settings = {"UCX_NET_DEVICES": network.interface} if "nixl" in setup.kinds else {}
        settings.update(setup.settings)
        log = logs / f"{setup.name.replace(' ', '-').replace(',', '')}.log"

        def start(side: str, kind: str, *sizes: int) -> End:
            end = End(pythons[kind], kind, side, network, settings, log, setup.place(side), *sizes)
            self._ends.append(end)
            return end

        self._start = start
        sides = [("initiator", setup.initiator)] + [("target", setup.target)] * targets
        sizes = (size, size if registered is None else registered)
        self._ends: list[End] = []
        try:
            for side, kind in sides:
                start(side, kind, *sizes)
            self.initiator, *self.targets = self._ends
            self.places = [end.begun() for end in self._ends][1:]
            self.initiator.ask("connect", *self.places[0])
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let all processes run for the time of the block."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def measured(self, request: str, *arguments: Any) -> Measured:
        """What a request has the initiator measure, with the processor time of all."""
        with self.awake():
            before = self._cpu_of_targets()
            found = self.initiator.ask(request, *arguments)
            cpu = found.pop("cpu") + self._cpu_of_targets() - before
        return Measured(cpu=cpu / found.pop("all_bytes") * 1e9, **found)

    def idle(self, seconds: float) -> float:
        """Processor time that all use for each second in which they do nothing."""
        with self.awake():
            before = self._cpu_of_targets() + self.initiator.ask("cpu")
            time.sleep(seconds)
            after = self._cpu_of_targets() + self.initiator.ask("cpu")
        return float(after - before) / seconds

    def _cpu_of_targets(self) -> float:
        used: list[float] = [end.ask("cpu") for end in self.targets]
        return sum(used)

    def _signal(self, number: int) -> None:
        for end in self._ends:
            with contextlib.suppress(ProcessLookupError):
                end.process.send_signal(number)

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Pair(Star):
    """An initiator and its one target."""

    def move(self, case: Case, seconds: float) -> Measured:
        """Run a case for so long."""
        return self.measured("run", case, seconds)

    def check(self, case: Case) -> None:
        """Move every block of a case once, and compare every byte. EndError when one differs."""
        source, sink = ("initiator", "target") if case.operation == "write" else ("target", "initiator")
        ends = {"initiator": self.initiator, "target": self.targets[0]}
        with self.awake():
            ends[source].ask("prepare", case, source, True)
            ends[sink].ask("prepare", case, sink, False)
            self._once(case)
            if len({end.ask("digest", case, side) for side, end in ends.items()}) != 1:
                raise EndError(f"bytes differ after {case}")

    def _once(self, case: Case) -> None:
        self.initiator.ask("once", case)


class PlainC:
    """rawtcp.c with so many connections. Its memory is not compared. To be closed."""

    def __init__(self, program: Path, lanes: int, network: Network, size: int) -> None:
        """size is the target's memory, in bytes."""
        self._command = [*network.enter("initiator"), str(program), "move", network.target]
        self._lanes = lanes
        self._target = subprocess.Popen(
            [*network.enter("target"), str(program), "serve", network.target, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._target.stdout
        self._port = self._target.stdout.readline().strip()
        if not self._port:
            raise EndError("rawtcp cannot serve")

    def move(self, case: Case, seconds: float) -> Measured:
        """A single block is a request at a time; else as many are in flight as a call has blocks, at most 64."""
        depth = min(IN_FLIGHT, case.blocks)
        lanes = self._lanes if case.blocks > 1 else 1
        what = [case.operation, case.block, case.blocks, lanes, depth, seconds]
        done = subprocess.run([*self._command, self._port, *map(str, what)], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise EndError(f"rawtcp failed at {case}")
        found = json.loads(done.stdout)
        measured = {name: found[name] for name in Measured._fields}
        return Measured(**{**measured, "cpu": found["cpu"] / found["bytes"] * 1e9})

    def close(self) -> None:
        self._target.kill()
        self._target.communicate()


Mover = Union[Pair, PlainC]
