"""What limits the rate between this machine and a peer, from what was measured.

Nothing here measures: each function takes rates and says what they mean. The first cause that explains a rate is the
finding; where a rate is as it can be expected to be, the cause is only worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvferry._command.findings import Finding, info, ok, warning
from kvferry._command.rates import Rate

GB = 1e9
LOSS = 0.005  # of the bytes, or segments, from which on loss slows a connection down
SOME_SEGMENTS = 20  # fewer lost ones say nothing
MUCH = 0.2  # of the time in which a connection was busy
FULL = 0.5  # of a window that was in use, from which on the window is what limits
BUSY = 0.95  # of processors that are as good as busy all the time
STARVED = 0.5  # threads without a processor in the mean, from which on other processes are in the way
GAIN = 1.3  # times, from which on more connections are faster for sure
ENOUGH = 0.5  # of the rate that can be expected
QUEUE = 2e-3  # seconds of a round trip under load, beyond an empty one, from which on packets wait in a queue


class Measured(NamedTuple):
    """What was measured of one direction."""

    usual: Rate  # with the settings in effect
    one: Rate  # with one connection
    several: Rate | None  # with several ones, where the settings in effect have fewer
    expected: float | None  # bytes per second; None where nothing is known


def diagnose(measured: Measured) -> Iterator[Finding]:
    """What limits a direction."""
    rate = measured.usual
    if rate.path == "host":
        yield from of_host(rate)
        return
    text = f"{rate.direction.upper()} reaches {rate.rate / GB:.2f} GB/s with {_connections(rate.connections)}"
    one = f", and {measured.one.rate / GB:.2f} GB/s with one" if rate.connections != 1 else ""
    yield ok("rate", text + one)
    low = measured.expected is not None and rate.rate < ENOUGH * measured.expected
    causes = [*of_lanes(measured), *of_loss(rate), *of_windows(rate)]
    yield from causes
    crowded = [*of_processors(rate)] if low or measured.expected is None else []
    yield from crowded
    if low and not causes and (not crowded or _queues(rate)):
        yield from of_slow_way(measured)
    elif not causes and not crowded:
        yield from of_limit(rate)


def of_host(rate: Rate) -> Iterator[Finding]:
    """A peer on this host, to which there is neither a connection that carries the bytes nor an interface."""
    yield info(
        "limit",
        f"{rate.direction.upper()} reaches {rate.rate / GB:.2f} GB/s: the peer is on this host, and bytes are copied"
        " from process to process",
        "KVFERRY_SAME_HOST=0 for both measures TCP.",
    )
    yield from of_processors(rate)


def of_lanes(measured: Measured) -> Iterator[Finding]:
    """Whether more connections would be faster than the settings allow."""
    rate, several = measured.usual, measured.several
    if several is None or several.rate < GAIN * rate.rate:
        return
    yield warning(
        "lanes",
        f"the settings allow {_connections(rate.connections)} to a peer, and {several.direction.upper()} with"
        f" {several.connections} is {several.rate / rate.rate:.1f} times as fast",
        "Unset MC_TCP_LANES_PER_PEER, or raise it, and leave MC_TCP_ENABLE_CONNECTION_POOL on.",
    )


def of_loss(rate: Rate) -> Iterator[Finding]:
    """Whether packets are lost."""
    flow = rate.flow
    segments = flow["retransmitted_bytes"] / max(flow["segment_bytes"], 1)
    sent = flow["retransmitted_bytes"] / max(flow["sent_bytes"], 1)
    came = flow["out_of_order_segments"] / max(flow["received_segments"], 1)
    if rate.direction == "write" and sent > LOSS and segments >= SOME_SEGMENTS:
        what = f"{sent:.1%} of the bytes that this machine sends are sent again"
    elif rate.direction == "read" and came > LOSS and flow["out_of_order_segments"] >= SOME_SEGMENTS:
        what = f"{came:.1%} of the segments from the peer come after a gap"
    else:
        return
    yield warning(
        "loss",
        f"packets are lost on the way: {what}",
        "Look at the errors and drops of the interfaces (ip -s link) and switches; KVFERRY_TCP_CONGESTION=bbr suffers"
        " less from loss.",
    )


def of_windows(rate: Rate) -> Iterator[Finding]:
    """Whether a buffer of one of the two kernels is too small for the round trip."""
    flow = rate.flow
    if rate.direction != "write" or not flow["connections"] or not flow["busy_seconds"]:
        return
    each = rate.rate / flow["connections"]
    in_flight = each * flow["round_trip_seconds"]
    window = flow["peer_window_bytes"] / flow["connections"]
    waited = flow["peer_limited_seconds"] / flow["busy_seconds"]
    if waited > MUCH and window and in_flight > FULL * window:
        yield warning(
            "window",
            f"connections wait {waited:.0%} of the time for the peer's receive window of {window:.0f} bytes: over a"
            f" round trip of {flow['round_trip_seconds'] * 1e3:.2f} ms it is too small",
            "Raise the last number of net.ipv4.tcp_rmem on the peer.",
        )
    waited = flow["send_buffer_limited_seconds"] / flow["busy_seconds"]
    if waited > MUCH and flow["min_round_trip_seconds"] > 1e-3:
        yield warning(
            "window",
            f"connections wait {waited:.0%} of the time for room in the send buffer: over a round trip of"
            f" {flow['min_round_trip_seconds'] * 1e3:.2f} ms it is too small",
            "Raise the last number of net.ipv4.tcp_wmem on this machine.",
        )


def of_processors(rate: Rate) -> Iterator[Finding]:
    """Whether other processes take the processors that the transfer needs."""
    if rate.load > BUSY and rate.starved > STARVED:
        yield warning(
            "processors",
            f"during the {rate.direction.upper()}s the processors that this process may use are busy {rate.load:.0%} of"
            f" the time, {rate.others:.0%} of it with other processes, and"
            f" {rate.starved:.1f} of its threads wait for one in the mean",
            "Give the transfers processors of their own (taskset, cpuset), or move the other processes.",
        )


def of_slow_way(measured: Measured) -> Iterator[Finding]:
    """A low rate that nothing at this end explains."""
    rate = measured.usual
    expected = f"{(measured.expected or 0) / GB:.2f} GB/s could be expected"
    if _queues(rate):
        yield warning(
            "slow link",
            f"packets queue on the way: the round trip grows from {rate.flow['min_round_trip_seconds'] * 1e3:.2f} ms to"
            f" {rate.flow['round_trip_seconds'] * 1e3:.2f} ms at {rate.rate / GB:.3f} GB/s, and {expected}",
            "Look at the speed of the links and at the limits of the switches and virtual machines on the way.",
        )
    elif rate.load > BUSY:
        yield warning(
            "processors",
            f"this process keeps its processors busy {rate.load:.0%} of the time, and {expected}",
            "Allow it more processors, or faster ones.",
        )
    elif _waits_for_peer(rate):
        yield warning(
            "peer",
            f"the peer takes the bytes slower than they come: {rate.rate / GB:.3f} GB/s, and {expected}",
            "Run kvferry doctor on the peer: its processors or the copies of its device limit.",
        )
    else:
        yield warning(
            "slow link",
            f"nothing at this end limits {rate.direction.upper()} to {rate.rate / GB:.3f} GB/s, and {expected}",
            "Look at the links on the way, and run kvferry doctor on the peer.",
        )


def of_limit(rate: Rate) -> Iterator[Finding]:
    """What bounds a rate that is as it should be."""
    if rate.load > BUSY:
        yield info("limit", "processors of this machine limit the rate")
    elif _queues(rate):
        yield info("limit", "the network limits the rate: packets queue on the way")
    elif _waits_for_peer(rate):
        yield info("limit", "the peer limits the rate: it takes the bytes slower than they come")


def _queues(rate: Rate) -> bool:
    return rate.flow["round_trip_seconds"] - rate.flow["min_round_trip_seconds"] > QUEUE


def _waits_for_peer(rate: Rate) -> bool:
    return rate.flow["peer_limited_seconds"] > MUCH * max(rate.flow["busy_seconds"], 1e-9)


def _connections(number: int) -> str:
    return f"{number} connection{'' if number == 1 else 's'}"
