"""kvferry top: what the engines of this host do now.

1. top_sources.py asks the processes, and top_rates.py compares with what they said before.
2. The columns that fit the terminal are shown, the busiest engines first.
3. On a terminal the screen is written over after each interval, until Ctrl-C. Elsewhere the table is printed once.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import signal
import time
from collections.abc import Sequence
from typing import Callable, NamedTuple

from kvferry._command import status, terminal
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.output import Output, table_lines
from kvferry._command.texts import age, duration, memory_text
from kvferry._command.top_rates import EngineRates, PeerRates, rates
from kvferry._command.top_sources import FOLDER, Reading, Source, SourceError, address, folder, found, read_all
from kvferry._options import positive, seconds

LONGEST_NAME = 40
LONGEST_PAUSE = 0.2  # seconds until the window's size is looked at again


class Column(NamedTuple):
    """A column of the table. Those with a higher rank are left out first where the terminal is narrow."""

    title: str
    rank: int
    cell: Callable[[EngineRates], str]
    of_peer: Callable[[PeerRates], str]
    right: bool = True
    least: int = 0  # how wide it is at least, so that it stays where it is while numbers change


def rate(value: float) -> str:
    """Bytes a second, in 10^6."""
    return f"{value / 1e6:.1f}" if value else "0"


def amount(value: int) -> str:
    """Bytes."""
    return memory_text(value).replace(" ", "").replace("iB", "") if value else "0"


def name(text: str) -> str:
    """A name, which is cut where it is long."""
    return text if terminal.width(text) <= LONGEST_NAME else terminal.cut(text, LONGEST_NAME - 1) + "~"


def _none(_: PeerRates) -> str:
    return ""


def _peer_name(peer: PeerRates) -> str:
    return f"  {'>' if peer.role == 'initiator' else '<'} {name(peer.peer)}"


def _errors(engine: EngineRates) -> str:
    return f"{engine.failures}" + (f" +{engine.new_failures}" if engine.new_failures else "")


COLUMNS: tuple[Column, ...] = (
    Column("ENGINE", 0, lambda e: name(e.engine), _peer_name, right=False),
    Column("PID", 5, lambda e: str(e.pid or "-"), _none),
    Column("UP", 6, lambda e: age(e.uptime), _none),
    Column("OUT MB/s", 0, lambda e: rate(e.out), lambda p: rate(p.write if p.role == "initiator" else p.read)),
    Column("IN MB/s", 0, lambda e: rate(e.into), lambda p: rate(p.read if p.role == "initiator" else p.write)),
    Column("READ", 9, lambda e: rate(e.read), _none, least=7),
    Column("WRITE", 9, lambda e: rate(e.write), _none, least=7),
    Column("SERVED", 9, lambda e: rate(e.served_read + e.served_write), _none, least=7),
    Column("BATCH/s", 4, lambda e: f"{e.batches:.0f}", _none),
    Column("P50", 7, lambda e: duration(e.p50), _none, least=6),
    Column("P99", 3, lambda e: duration(e.p99), _none, least=6),
    Column("QUEUE", 1, lambda e: amount(e.queued), lambda p: amount(p.queued), least=6),
    Column("FLIGHT", 2, lambda e: amount(e.in_flight), lambda p: amount(p.in_flight), least=6),
    Column("PEERS", 2, lambda e: str(len(e.peers)), _none),
    Column("CONN", 8, lambda e: str(sum(p.connections for p in e.peers)), lambda p: str(p.connections)),
    Column("ERRORS", 1, _errors, lambda p: str(p.failures)),
    Column("RETRIES", 8, lambda e: str(sum(p.retries for p in e.peers)), lambda p: str(p.retries)),
    Column("FILES", 10, lambda e: str(e.open_files), _none),
    Column("MEM", 10, lambda e: amount(e.resident), _none, least=6),
)


def lines(engines: Sequence[EngineRates], peers: bool, columns: int | None) -> list[str]:
    """The table, within so many columns of the terminal; with peers, each engine's below it."""
    rows: list[tuple[EngineRates, PeerRates | None]] = []
    for engine in engines:
        rows.append((engine, None))
        rows += [(engine, peer) for peer in engine.peers if peers]
    shown = list(COLUMNS)
    while True:
        cells = [[c.cell(e) if p is None else c.of_peer(p) for c in shown] for e, p in rows]
        right = [index for index, column in enumerate(shown) if column.right]
        least = [column.least for column in shown]
        table = table_lines([column.title for column in shown], cells, right, least=least)
        if columns is None:
            return table
        worst = max(shown, key=lambda column: column.rank)
        if max(map(terminal.width, table)) <= columns or worst.rank == 0:
            return [terminal.cut(line, columns) for line in table]
        shown.remove(worst)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command."""
    given = [Source(text, None) for text in arguments.addresses]
    try:
        if out.rewritable and arguments.count != 1:
            refresh(given, arguments)
            return status.OK
        return once(given, arguments, out)
    except SourceError as e:
        raise CommandError(str(e)) from e


def once(given: list[Source], arguments: argparse.Namespace, out: Output) -> int:
    """Print the table, as often as was asked for; by default once."""
    before = read_all(given or found())
    failed = False
    for number in range(arguments.count or 1):
        time.sleep(arguments.interval)
        after = read_all(given or found())
        engines = rates(before, after)
        if number and not out.as_json:
            out.text()
        _print(engines, after, arguments, out)
        problems = _problems(after, bool(given))
        for problem in problems:
            out.warning(problem)
        failed, before = bool(problems), after
    out.result([engine.as_json() for engine in engines])
    return status.FAILED if failed else status.OK


def _print(engines: list[EngineRates], after: list[Reading], arguments: argparse.Namespace, out: Output) -> None:
    if engines:
        for line in lines(engines, arguments.peers, out.columns)[1 if out.quiet else 0 :]:
            out.text(line)
    else:
        out.note(_nothing(after))


def _nothing(after: list[Reading]) -> str:
    """Why there are no engines."""
    where = folder()
    if after:
        return "no engines"
    return f"no engines of this user: there are no sockets in {where}" if where else f"{FOLDER} is off: name addresses"


def _problems(after: list[Reading], given: bool) -> list[str]:
    """What is wrong with sources that were named. A socket that was found may be that of a process that has ended."""
    return [f"{r.source.address} does not say what its engines do: {r.problem}" for r in after if r.problem and given]


def refresh(given: list[Source], arguments: argparse.Namespace) -> None:
    """Write the table over itself after each interval, until Ctrl-C or as often as was asked for."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it, too, ends with the usual screen
    draw: Callable[[], list[str]] = functools.partial(_first, arguments.interval)
    with terminal.Screen() as shown:
        try:
            before = read_all(given or found())
            shown.show(draw())
            for _ in itertools.repeat(None, arguments.count) if arguments.count else itertools.count():
                _wait(arguments.interval, shown, draw)
                after = read_all(given or found())
                draw = functools.partial(screen, rates(before, after), after, arguments, bool(given))
                shown.show(draw())
                before = after
        except KeyboardInterrupt:
            pass


def _first(interval: float) -> list[str]:
    """What is shown before there are rates."""
    return [terminal.cut(f"kvferry top: the first rates come in {interval:g} s; Ctrl-C ends it", terminal.size()[0])]


def _wait(interval: float, shown: terminal.Screen, draw: Callable[[], list[str]]) -> None:
    """Wait for so many seconds, and draw anew where the window gets another size meanwhile."""
    end, drawn = time.monotonic() + interval, terminal.size()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LONGEST_PAUSE))
        if terminal.size() != drawn:
            drawn = terminal.size()
            shown.show(draw())


def screen(engines: list[EngineRates], after: list[Reading], arguments: argparse.Namespace, given: bool) -> list[str]:
    """The lines of the terminal: a summary, the table, and what is wrong."""
    columns, rows = terminal.size()
    out, into = (sum(values) / 1e6 for values in ([e.out for e in engines], [e.into for e in engines]))
    clock = time.strftime("%H:%M:%S")
    summary = f"kvferry top {clock}, engines: {len(engines)}, out {out:.1f} MB/s, in {into:.1f} MB/s; Ctrl-C ends it"
    shown = [summary, *(lines(engines, arguments.peers, columns) if engines else [_nothing(after)])]
    shown += _problems(after, given)
    room = max(2, rows - 1)
    if len(shown) > room:
        shown = [*shown[: room - 1], f"({len(shown) - room + 1} more lines)"]
    return [terminal.cut(line, columns) for line in shown]


COMMAND = Command(
    name="top",
    help="show what engines do now",
    description="Show what the engines of this user on this host do, or those at the given addresses: rates, how long"
    " batches took, what is queued and in flight, peers, and failed requests. OUT and IN are payload in 10^6 bytes a"
    " second, as initiator and as target. P99 is the upper bound of a bucket: durations are counted in buckets, each"
    " twice as long as the one before. ERRORS are failed requests since the engine was made, and after a plus those of"
    " the interval. On a terminal the table is refreshed until Ctrl-C, and has as many columns as fit.",
    run=run,
    options=(
        option(
            "addresses",
            metavar="ADDRESS",
            nargs="*",
            type=address,
            help="KVFERRY_METRICS_LISTEN of other engines, as 10.0.0.2:9400 or unix:/run/kvferry/7.sock (the engines of"
            " this user)",
        ),
        option("-p", "--peers", action="store_true", help="show the peers of each engine: > it moves, < they move"),
        option("-i", "--interval", type=seconds, default=1.0, metavar="S", help="seconds (%(default)s)"),
        option("-n", "--count", type=positive, metavar="N", help="end after so many tables (1; on a terminal no end)"),
    ),
    examples=(
        Example("kvferry top", "the engines of this user"),
        Example("kvferry top --peers 10.0.0.2:9400 10.0.0.3:9400", "engines of two other hosts, with their peers"),
        Example("kvferry top --json --interval 10", "rates of ten seconds, for programs"),
    ),
)
