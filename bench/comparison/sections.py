"""What is measured, section by section."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple

from comparison.busy import busy
from comparison.case import KIB, MANY, MIB, Case
from comparison.crowd import crowd
from comparison.layouts import layouts
from comparison.observed import observed
from comparison.pairs import LOOPBACK, EndError, Mover, Network, Pair, PlainC, Setup, Star
from comparison.results import (
    DIRECT,
    IPERF,
    MIXED,
    MOONCAKE,
    NIXL,
    OURS,
    PLAIN,
    POLLING,
    SIXTEEN,
    UNPOOLED,
)
from comparison.running import (
    LANES,
    NO_SHORTCUT,
    PATIENT,
    SETUPS,
    Make,
    Plan,
    Run,
    attempt,
    dropping,
    in_rounds,
    linked,
    makers,
    makers_of,
    opened,
    pair,
    progress,
    series_in_rounds,
)
from comparison.secured import secured

OPERATIONS = ("write", "read")
BATCHES = {4 * KIB: 64, 64 * KIB: 64, MIB: 32, 16 * MIB: 4}  # blocks of a call by their size
SWEEP = {**BATCHES, 16 * KIB: 64, 256 * KIB: 64, 4 * MIB: 8}  # for plots over the block size
ON_LINK = (4 * KIB, 64 * KIB, MIB)

DELAYS = (0, 250, 925)  # microseconds each way, beside the link's own
DELAY = 250  # for a round trip of about 0.65 ms
LANE_COUNTS = (1, 2, 4, 8)
PEERS = (1, 2, 4, 8, 16, 32, 64)
TARGETS = 4  # processes that the engines of many peers share
PEER_MEMORY = 2 * MIB  # bytes of each of many peers
POWERS = (1, 10, 100, 1000, 10_000, 100_000)
CROSSINGS = (1, 64, 4096)  # requests of a call
LISTEN, TIME_WAIT = "0A", "06"  # of net/tcp_states.h


def batch(operation: str, block: int) -> Case:
    return Case(operation, block, SWEEP[block])


def one(operation: str, block: int) -> Case:
    return Case(operation, block, 1)


SMALL = one("write", 4 * KIB)
BULK = batch("write", MIB)
MIDDLE = batch("write", 64 * KIB)
ADJACENT = Case("write", 4 * KIB, 64, scattered=False)
THREADS = MIDDLE._replace(threads=4)
BY_ONE = MIDDLE._replace(blocks=THREADS.threads * MIDDLE.blocks)  # as much memory, of which caches hold less


# Loopback


def loopback_plan(processors: int) -> Plan:
    engines = (OURS, DIRECT, MOONCAKE, UNPOOLED, NIXL)
    plan: Plan = {batch(op, block): (*engines, *PLAIN.values()) for block in BATCHES for op in OPERATIONS}
    if processors >= MANY:
        plan.update({Case(op, 16 * MIB, 8): (*engines, *PLAIN.values()) for op in OPERATIONS})
    with_mixed(plan)
    plan[THREADS] = (OURS, DIRECT, MOONCAKE, UNPOOLED)
    plan[BY_ONE] = (OURS, DIRECT)
    plan[ADJACENT] = engines
    for block in sorted(SWEEP):
        plan.setdefault(batch("write", block), (OURS, DIRECT, MOONCAKE, NIXL, PLAIN[4]))
        plan[one("write", block)] = (OURS, DIRECT, MOONCAKE, NIXL, PLAIN[1])
    for op in OPERATIONS:
        plan[one(op, 4 * KIB)] = (*engines, POLLING, PLAIN[1])
    return plan


def with_mixed(plan: Plan) -> None:
    """Have ours start transfers to Mooncake, too."""
    for op in OPERATIONS:
        plan[batch(op, 64 * KIB)] = (*plan[batch(op, 64 * KIB)], MIXED)


def loopback(run: Run) -> None:
    """Every case, and what engines take of the machine."""
    plan = loopback_plan(os.cpu_count() or 1)
    with opened(run, makers_of(run, plan, LOOPBACK)) as movers:
        in_rounds(run, "loopback", plan, movers)
        progress("  small requests beside a bulk transfer")
        for _ in run.rounds():
            for name in (OURS, DIRECT, MOONCAKE, UNPOOLED):
                beside(run, name, movers)
        for name in (OURS, MOONCAKE, NIXL):
            resources(run, name, movers)


def beside(run: Run, name: str, movers: dict[str, Mover]) -> None:
    mover = movers.get(name)
    if isinstance(mover, Pair):
        with attempt(run, f"a small request beside bulk, {name}"), dropping(movers, name), mover.awake():
            found = mover.initiator.ask("beside", SMALL, BULK, 2 * run.options.seconds)
            run.results.beside.setdefault(name, []).append(found)


def resources(run: Run, name: str, movers: dict[str, Mover]) -> None:
    """Processor time of a pair that does nothing, and its memory."""
    mover = movers.get(name)
    if isinstance(mover, Pair):
        with attempt(run, f"{name}, doing nothing"), dropping(movers, name):
            run.results.idle[name] = mover.idle(run.options.idle)
            with mover.awake():
                ends = {"initiator": mover.initiator, "target": mover.targets[0]}
                run.results.memory[name] = {side: end.ask("memory") for side, end in ends.items()}


# A link with a round trip


def link_plan() -> Plan:
    engines = (OURS, MOONCAKE, UNPOOLED, SIXTEEN, NIXL)
    plan: Plan = {batch(op, block): (*engines, PLAIN[1], PLAIN[4]) for block in ON_LINK for op in OPERATIONS}
    with_mixed(plan)
    plan[SMALL] = (*engines, PLAIN[1])
    return plan


def over_link(run: Run) -> None:
    plan = link_plan()
    with linked(run, DELAY) as network:
        with opened(run, makers_of(run, plan, network)) as movers:
            in_rounds(run, "link", plan, movers)
        if run.machine.iperf3:
            progress(f"  {IPERF}")
            with attempt(run, IPERF):
                run.results.iperf = [iperf(run.machine.iperf3, network) for _ in range(run.options.rounds)]


def iperf(program: str, network: Network) -> float:
    """GB/s of one connection for a second."""
    serve = [*network.enter("target"), program, "-s", "-1", "--forceflush", "-B", network.target]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            while "listening" not in (line := server.stdout.readline()):
                if not line:
                    raise EndError("it does not listen")
            command = [*network.enter("initiator"), program, "-c", network.target, "-t", "1", "-J"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode != 0:
                raise EndError(f"it failed with status {done.returncode}")
        finally:
            server.kill()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 8e9


# Scaling


def over_lanes(run: Run) -> None:
    making: dict[tuple[str, float], Make[Mover]] = {}
    for lanes in LANE_COUNTS:
        for name, kind, settings in ((OURS, "ours", NO_SHORTCUT), (MOONCAKE, "mooncake", {})):
            setup = Setup(f"{name}, lanes {lanes}", kind, kind, {LANES: str(lanes), **settings})
            if run.can(setup):
                making[name, lanes] = functools.partial(pair, run, setup, LOOPBACK, BULK.span)
        if run.machine.rawtcp:
            making["plain C", lanes] = functools.partial(PlainC, run.machine.rawtcp, lanes, LOOPBACK, BULK.span)
    with opened(run, making) as movers:
        series_in_rounds(run, "lanes", BULK, movers)


def over_round_trip(run: Run) -> None:
    at_round_trip(run, LOOPBACK)
    for delay in DELAYS if run.machine.delaylink else ():
        with linked(run, delay) as network:
            at_round_trip(run, network)


def at_round_trip(run: Run, network: Network) -> None:
    """One more place on the axis: the milliseconds that the plain C program takes for a request of 8 bytes."""
    assert run.machine.rawtcp
    plain = PlainC(run.machine.rawtcp, 1, network, MIB)
    trip = statistics.median(plain.move(one("write", 8), 0.1).p50 for _ in range(3)) / 1e3
    plain.close()
    progress(f"  a round trip of {trip:.2f} ms")
    names = {DIRECT: OURS, MOONCAKE: MOONCAKE, SIXTEEN: SIXTEEN, NIXL: NIXL, PLAIN[4]: PLAIN[4]}
    making = {
        (names[name], round(trip, 3)): make for name, make in makers(run, list(names), network, MIDDLE.span).items()
    }
    with opened(run, making) as movers:
        series_in_rounds(run, "round trip", MIDDLE, movers)


def over_peers(run: Run) -> None:
    """Many engines to move to at once. NIXL's would have to call all the time on every one of them."""
    making: dict[str, Make[Star]] = {}
    for name in (DIRECT, MOONCAKE):
        if run.can(SETUPS[name]):
            making[name] = functools.partial(star, run, SETUPS[name])
    counts = [count for count in PEERS if count <= run.options.largest]
    with opened(run, making) as stars:
        for name in list(stars):
            with attempt(run, f"peers, {name}"), dropping(stars, name):
                add_peers(stars[name], max(counts))
        for _ in run.rounds():
            for count in counts:
                for name in list(stars):
                    with attempt(run, f"{count} peers, {name}"), dropping(stars, name):
                        spread(run, stars[name], OURS if name == DIRECT else name, count)


def star(run: Run, setup: Setup) -> Star:
    return Star(
        setup, run.machine.pythons, run.logs, LOOPBACK, size=PEER_MEMORY * max(PEERS) // TARGETS, targets=TARGETS
    )


def add_peers(peers: Star, count: int) -> None:
    """Engines of peers, in turns one from each process."""
    with peers.awake():
        each = -(-count // TARGETS)
        places = [target.ask("add_engines", each, PEER_MEMORY) for target in peers.targets]
        peers.initiator.ask("add_peers", [place for turn in zip(*places) for place in turn])


def spread(run: Run, peers: Star, name: str, count: int) -> None:
    """Large blocks for what is moved, small ones for what a request takes."""
    large, small = Case("write", 64 * KIB, 16), Case("write", 4 * KIB, 16)
    run.results.add_to_series("peers", name, count, peers.measured("spread", large, count, run.options.seconds).rate)
    found = peers.measured("spread", small, count, run.options.seconds)
    run.results.add_to_series("peers, small", name, count, found.seconds / found.bytes * small.block * 1e6)


# Growth, of ours alone


def growth(run: Run) -> None:
    setup = SETUPS[DIRECT]
    counts = [count for count in POWERS if count <= run.options.largest]
    with opened(run, {"ours": functools.partial(pair, run, setup, LOOPBACK, 16 * MIB)}) as pairs:
        for name in list(pairs):
            with attempt(run, "growth"):
                in_flight(run, pairs[name], counts)
                time_wait(run, pairs[name], counts)
    with opened(run, {"ours": functools.partial(region_pair, run, setup, max(counts))}) as pairs:
        for name in list(pairs):
            with attempt(run, "regions"):
                regions(run, pairs[name], counts[1:])


def in_flight(run: Run, pair: Pair, counts: Sequence[int]) -> None:
    """Microseconds for a request of a batch of so many."""
    cases = [Case(op, 64, count) for op in OPERATIONS for count in counts]
    progress(f"  up to {max(counts):,} requests in flight")
    for case in cases:
        pair.check(case)
    for _ in run.rounds():
        for case in cases:
            taken = pair.move(case, run.options.seconds).p50 / case.blocks
            run.results.add_to_series("in flight", case.operation.upper(), case.blocks, taken)


def time_wait(run: Run, pair: Pair, counts: Sequence[int]) -> None:
    """Sockets in TIME_WAIT after so many transfers, of the ports on which the two ends listen."""
    progress("  sockets in TIME_WAIT")
    ports = {port for end in (pair.initiator, *pair.targets) for port in listening(end.process.pid)}
    done = 0
    with pair.awake():
        for count in counts:
            pair.initiator.ask("transfers", count - done)
            done = count
            run.results.add_to_series("TIME_WAIT", "sockets", count, in_time_wait(ports))


class Socket(NamedTuple):
    """A line of the kernel's tables."""

    ports: set[str]  # hexadecimal, of both sides
    state: str
    inode: str


def sockets() -> Iterator[Socket]:
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, here, there, state, *_, inode = line.split()[:10]
            yield Socket({place.rsplit(":", 1)[1] for place in (here, there)}, state, inode)


def listening(process: int) -> set[str]:
    """The ports on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    found = [each.ports for each in sockets() if each.state == LISTEN and each.inode in inodes]
    return set().union(*found) - {"0000"}


def in_time_wait(ports: set[str]) -> int:
    return sum(each.state == TIME_WAIT and bool(each.ports & ports) for each in sockets())


def region_pair(run: Run, setup: Setup, regions: int) -> Pair:
    """A pair with room for so many small regions, of which an engine's description is long."""
    settings = {**setup.settings, "MC_HANDSHAKE_MAX_LENGTH": str(128 * MIB)}
    many = setup._replace(settings=settings)
    return Pair(many, run.machine.pythons, run.logs, LOOPBACK, size=(1 << 16) + (regions << 10), registered=1 << 16)


def regions(run: Run, pair: Pair, counts: Sequence[int]) -> None:
    """Microseconds to register one more region, and for a call with 64 requests that reach different ones."""
    progress("  many regions")
    first = 0
    with pair.awake():
        for count in counts:
            taken = [end.ask("regions", first, count) for end in (pair.initiator, *pair.targets)]
            first = count
            run.results.add_to_series("regions, registering", "one region", count, statistics.mean(taken))
            for _ in range(run.options.rounds):
                call = pair.initiator.ask("to_regions", count, 64, run.options.seconds)
                run.results.add_to_series("regions, transfer", "64 requests", count, call)


# Crossing from Python


def crossing(run: Run) -> None:
    """Microseconds of a call with so many tiny requests, in the middle of many calls."""
    making = makers(run, (OURS,), LOOPBACK, MIB)
    patient = SETUPS[MOONCAKE]._replace(settings=PATIENT)  # by default it refuses 4096 requests at once
    if run.can(patient):
        making[MOONCAKE] = functools.partial(pair, run, patient, LOOPBACK, MIB)
    with opened(run, making) as movers:
        kinds = crossing_kinds(run, movers)
        for _ in run.rounds():
            for count in CROSSINGS:
                for line, (name, kind) in kinds.items():
                    mover = movers.get(name)
                    if isinstance(mover, Pair):
                        with attempt(run, f"crossing, {line}"), dropping(movers, name), mover.awake():
                            taken = mover.initiator.ask("crossing", count, kind, run.options.seconds)
                            run.results.add_to_series("crossing", line, count, taken)


def crossing_kinds(run: Run, movers: Mapping[str, Mover]) -> dict[str, tuple[str, str]]:
    """Lines by their names: an engine, and what its arguments are."""
    kinds = {OURS: (OURS, "list"), "ours, arrays of Python": (OURS, "array"), MOONCAKE: (MOONCAKE, "list")}
    ours = movers.get(OURS)
    if isinstance(ours, Pair):
        with ours.awake():
            if ours.initiator.ask("has", "numpy"):
                kinds["ours, arrays of NumPy"] = (OURS, "numpy")
            else:
                python = run.machine.pythons["ours"]
                run.results.missing.append(f"arrays of NumPy: no NumPy; `{python} -m pip install numpy`")
    return kinds


# What each section needs beside the engines: "rawtcp" or "delaylink" of the machine.
SECTIONS: dict[str, tuple[Callable[[Run], None], str]] = {
    "loopback": (loopback, ""),
    "busy": (busy, ""),
    "link": (over_link, "delaylink"),
    "security": (secured, ""),
    "observed": (observed, ""),
    "layouts": (layouts, ""),
    "lanes": (over_lanes, ""),
    "roundtrip": (over_round_trip, "rawtcp"),
    "peers": (over_peers, ""),
    "crowd": (crowd, ""),
    "growth": (growth, ""),
    "crossing": (crossing, ""),
}
