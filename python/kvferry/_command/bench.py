"""kvferry bench PEER: how fast memory moves between this machine and a peer, with every byte checked.

Each line of the table is one case: an operation, a size of blocks, a number of blocks in a batch, and a number of
threads. bench_target.py finds memory of the peer, bench_rounds.py measures a case.

Only the transfers are timed. The source of a READ is the pattern that the server has written; what a WRITE has written
is read back. A peer that is no `kvferry serve` has memory of its own: it is only read, and what is read is not known,
unless the user allows to overwrite it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any, Callable

from kvferry._bindings import KVFERRY_ACCESS_NONE
from kvferry._command import status
from kvferry._command.bench_rounds import FOOTPRINT, OPCODES, Case, Measured, Rounds, require_room
from kvferry._command.bench_target import Target, target_of
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.engines import ENGINE, P2P, engine, quiet_engine
from kvferry._command.live import Live
from kvferry._command.output import Output
from kvferry._command.serving import PAGE
from kvferry._command.texts import duration
from kvferry._device import DeviceError
from kvferry._engine import Engine
from kvferry._options import positive, seconds, several, takes
from kvferry._places import HostMemory, Placed, PlaceError, allocate, place, size_text

LONGEST = 10  # times the seconds of a case that its rounds may take with filling and checking


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command: measure all cases, and print the table."""
    quiet_engine(out)
    operations = arguments.op or list(OPCODES)
    cases = [Case(*v) for v in itertools.product(operations, arguments.size, arguments.batch, arguments.threads)]
    try:
        memory = allocate(arguments.memory, max(FOOTPRINT, *(case.least for case in cases)))
        landing = HostMemory(PAGE)
        with engine(arguments, arguments.peer if arguments.metadata == P2P else None, (memory, landing)) as made:
            if made.register(memory.address, memory.size, memory.location, KVFERRY_ACCESS_NONE) != 0:
                raise CommandError(f"the memory of this side cannot be registered: {made.last_error()}")
            with target_of(made, arguments.peer, arguments.buffer, arguments.yes_write, landing) as target:
                Bench(made, memory, target, arguments, out).run(_allowed(cases, target, arguments, out))
    except (PlaceError, DeviceError, OSError) as e:
        raise CommandError(str(e)) from e
    return status.OK


def _allowed(cases: Sequence[Case], target: Target, arguments: argparse.Namespace, out: Output) -> list[Case]:
    """The cases without WRITEs to memory that must not be overwritten."""
    if target.may_write:
        return list(cases)
    if "write" in (arguments.op or ()):
        raise CommandError(
            f"{arguments.peer} is no kvferry serve: a WRITE would overwrite its program's memory; --yes-write allows it"
        )
    out.note(f"{arguments.peer} is no kvferry serve: its memory is only read, and what is read is not checked")
    return [case for case in cases if case.op == "read"]


class Bench:
    """The cases of one run, and what was found out about them."""

    def __init__(
        self, engine: Engine, memory: Placed, target: Target, arguments: argparse.Namespace, out: Output
    ) -> None:
        self._engine, self._memory, self._target = engine, memory, target
        self._arguments, self._out = arguments, out
        self._rows: list[dict[str, Any]] = []

    def run(self, cases: Sequence[Case]) -> None:
        """Measure the cases, and print the table; also where one of them fails or Ctrl-C ends them."""
        target, here = self._target, self._arguments.memory
        for case in cases:
            require_room(case, target)
        there = f"{size_text(target.size)} of {target.place} memory at {self._arguments.peer} ({target.kind})"
        self._out.note(f"{here} memory here, {there}")
        try:
            with Live(self._out) as live:
                for number, case in enumerate(cases, 1):
                    self._measure(case, f"{number}/{len(cases)} {case}", live)
        except BaseException:
            self._out.unfinished(self._result())
            raise
        finally:
            self._print_table()
        self._out.result(self._result())
        if all(row["checked"] for row in self._rows):
            self._out.note("every byte was checked")

    def _measure(self, case: Case, title: str, live: Live) -> None:
        rounds = Rounds(self._engine, self._memory, self._target, case)
        try:
            live.show(f"{title}: connecting")
            rounds.prepare()
            before, measured = self._bytes_by_path(), rounds.measured
            longest = time.monotonic() + LONGEST * self._arguments.seconds
            while measured.seconds < self._arguments.seconds and time.monotonic() < longest:
                for _ in rounds.run():
                    self._target.keep()
                    live.show(f"{title}: {_progress(measured, rounds.progress())}")
                self._target.keep()
                live.show(f"{title}: {_progress(measured, 0)}")
            self._rows.append(self._row(case, measured, _path(before, self._bytes_by_path())))
        except BaseException:
            self._target.end()
            self._engine.close()  # which ends the transfers of the threads
            raise
        finally:
            rounds.close()

    def _row(self, case: Case, measured: Measured, path: str) -> dict[str, Any]:
        return {
            "operation": case.op,
            "block_bytes": case.size,
            "batch": case.batch,
            "threads": case.threads,
            "bytes": measured.bytes,
            "seconds": measured.seconds,
            "bytes_per_second": measured.rate,
            "batches": len(measured.durations),
            "p50_seconds": measured.percentile(0.5),
            "p99_seconds": measured.percentile(0.99),
            "processor_seconds_per_gb": measured.processor / (measured.bytes / 1e9),
            "path": path,
            "checked": measured.checked,
        }

    def _bytes_by_path(self) -> dict[str, int]:
        """Bytes that the engine has moved so far, by path."""
        found: dict[str, int] = {}
        for peer in self._engine.stats()["initiator"]:
            for moved in (peer["read"], peer["write"]):
                for path, count in moved["bytes"].items():
                    found[path] = found.get(path, 0) + count
        return found

    def _print_table(self) -> None:
        if self._rows:
            cells = [[cell(row) for _, cell in COLUMNS] for row in self._rows]
            self._out.table([title for title, _ in COLUMNS], cells, RIGHT)

    def _result(self) -> dict[str, Any]:
        return {
            "peer": self._arguments.peer,
            "kind": self._target.kind,
            "memory": self._arguments.memory,
            "peer_memory": self._target.place,
            "cases": self._rows,
        }


def _progress(measured: Measured, moved: int) -> str:
    return f"{measured.rate / 1e9:.2f} GB/s, {(measured.bytes + moved) / 1e9:.1f} GB"


def _path(before: dict[str, int], after: dict[str, int]) -> str:
    """The paths on which bytes have moved, joined by a plus."""
    return "+".join(sorted(path for path, count in after.items() if count > before.get(path, 0)))


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("", lambda row: row["operation"]),
    ("block", lambda row: size_text(row["block_bytes"])),
    ("batch", lambda row: str(row["batch"])),
    ("threads", lambda row: str(row["threads"])),
    ("GB/s", lambda row: f"{row['bytes_per_second'] / 1e9:.2f}"),
    ("p50", lambda row: duration(row["p50_seconds"])),
    ("p99", lambda row: duration(row["p99_seconds"])),
    ("cpu/GB", lambda row: duration(row["processor_seconds_per_gb"])),
    ("path", lambda row: row["path"]),
    ("checked", lambda row: "yes" if row["checked"] else "no"),
)
RIGHT = range(1, 8)


@takes("read or write")
def operation(text: str) -> str:
    """read or write; ValueError for any other."""
    if text not in OPCODES:
        raise ValueError(text)
    return text


@takes("a whole number from 0 on")
def number(text: str) -> int:
    """A number from 0 on; ValueError for any other text."""
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


MOST_THREADS = 256
MOST_BLOCKS = 1 << 20


@takes(f"a whole number from 1 to {MOST_THREADS}")
def threads(text: str) -> int:
    """A number of threads; ValueError for one that is too large."""
    return _at_most(MOST_THREADS, text)


@takes(f"a whole number from 1 to {MOST_BLOCKS}")
def blocks(text: str) -> int:
    """A number of blocks of a batch; ValueError for one that is too large."""
    return _at_most(MOST_BLOCKS, text)


def _at_most(limit: int, text: str) -> int:
    if not 1 <= int(text) <= limit:
        raise ValueError(text)
    return int(text)


COMMAND = Command(
    name="bench",
    help="measure how fast memory moves to and from a peer",
    description="Measure how fast memory moves between this machine and a peer, which should run kvferry serve, and"
    " check every byte. Only transfers are timed, not the checks. The table has the rate, the time that batches took,"
    " the processor time of this side, and the path: tcp, or host where the peer is on this machine. Of a peer that is"
    " no kvferry serve, such as Mooncake's transfer_engine_bench --mode=target, only memory that it has registered is"
    " used, and it is only read unless --yes-write is given.",
    run=run,
    options=(
        option("peer", metavar="PEER", help="the peer's name, as host:port"),
        option("--op", type=several(operation), metavar="OPS", help="read, write or both (read,write)"),
        option(
            "--size", type=several(positive), default="64K,1M", metavar="BYTES", help="sizes of a block (%(default)s)"
        ),
        option("--batch", type=several(blocks), default="32", metavar="N", help="blocks of a batch (%(default)s)"),
        option("--threads", type=several(threads), default="1", metavar="N", help="threads here (%(default)s)"),
        option(
            "--seconds", type=seconds, default=2.0, metavar="S", help="time of transfers of each case (%(default)s)"
        ),
        option(
            "--memory",
            type=place,
            default="host",
            metavar="PLACE",
            help="memory of this side: host, npu:N or cuda:N (%(default)s)",
        ),
        option(
            "--buffer",
            type=number,
            metavar="N",
            help="which buffer of a peer that is no kvferry serve (the largest that it may use)",
        ),
        option(
            "--yes-write",
            action="store_true",
            help="overwrite memory of a peer that is no kvferry serve; its program loses what is there",
        ),
        *ENGINE,
    ),
    examples=(
        Example("kvferry bench 10.0.0.2:15234", "both operations, two sizes"),
        Example("kvferry bench 10.0.0.2:15234 --op read --size 16K --batch 256 --threads 1,4", "small blocks"),
        Example("kvferry bench 10.0.0.2:15234 --memory npu:0 --json", "from and to an NPU, as JSON"),
    ),
)
