"""What the doctor says of the way to a peer, in the order in which an engine goes it:

1. The name leads to addresses, and the handshake port answers. Large packets get there. With security on that is found
   out only where a later step fails: it takes a request without TLS, which the peer refuses and logs.
2. An engine of this process asks the peer what it offers: its identity, its memory, the address of its data port.
   Security is decided here.
3. The data port answers at the address that the peer publishes, or at that of its handshake port.
4. A first transfer succeeds.
5. Rates are measured (rates.py), with the settings in effect, with one connection, and with several ones where the
   settings have fewer. A peer that runs `kvferry serve` is read and written; of any other, memory is only read.
6. What limits the rates is found out (diagnosis.py).

A step that fails ends the examination, since none of the later ones can succeed.
"""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

from kvferry._bindings import KVFERRY_ACCESS_NONE
from kvferry._command import engines
from kvferry._command.bench_target import NotAllowedError, Target, target_of
from kvferry._command.declaration import CommandError
from kvferry._command.diagnosis import Measured, diagnose
from kvferry._command.doctor_engine import APART, NO_FILES, no_descriptors, of_failed_start
from kvferry._command.doctor_host import lanes_of, of_descriptors
from kvferry._command.findings import ERROR, Finding, error, info, ok, warning
from kvferry._command.rates import Range, Rate, environment, measure
from kvferry._command.serving import PAGE
from kvferry._command.settings import Settings, value
from kvferry._engine import Engine
from kvferry._places import HostMemory, PlaceError, allocate
from kvferry._probes import addresses, connecting, limits, packets
from kvferry._texts import Description

PATIENCE = 3.0  # seconds in which a port has to answer: two lost packets
ANSWER = 10.0  # seconds in which a peer has to say what it offers
MOST = 64 << 20  # bytes that are moved at a time
SEVERAL = 4  # connections that are tried where the settings have fewer
SLOW_NAMES = 0.5  # seconds of a name's resolution
FAR = 5e-3  # seconds of a round trip from which on a batch of small blocks is slow
RESET = os.strerror(errno.ECONNRESET)
OF_RESETS = (
    "Look at the peer's KVFERRY_ALLOW: the peer resets connections from addresses that are not in it, and warns of"
    " them in its log. A firewall may reset connections, too."
)
# Words of the engine's errors that are about who somebody is.
OF_SECURITY = ("KVFERRY_SECURITY", "secret", "certificate", "TLS")


class Way(NamedTuple):
    """What an examination needs to know of the way."""

    arguments: argparse.Namespace  # peer, metadata, name, seconds, expect
    settings: Settings
    measured: dict[str, Any]  # filled as it goes, for --json


def examine(way: Way) -> Iterator[Finding]:
    """All steps."""
    peer = way.arguments.peer
    address = ""
    yield from of_descriptors(limits.limits())  # where few are left, the steps that follow say less
    if way.arguments.metadata == engines.P2P:
        if "://" in peer:
            yield of_url()
            return
        host, given = engines.split(peer)
        port = int(value(way.settings, "MC_HANDSHAKE_PORT")) if given is None else given
        found = connecting.resolve(host)
        yield from of_name(host, found)
        attempts = [connecting.connect(one, port, PATIENCE) for one in found.addresses]
        way.measured["handshake"] = [attempt._asdict() for attempt in attempts]
        yield from of_handshake_port(host, port, given is not None, attempts)
        reached = next((attempt for attempt in attempts if not attempt.problem), None)
        if reached is None:
            return
        address = reached.address
        yield from of_path(reached)
        if not is_secure(way) and (yield from of_large_packets(way, address, port)):
            return
    found_wrong = False
    for finding in examine_engine(way, address):
        found_wrong = found_wrong or finding.severity == ERROR
        yield finding
    if found_wrong and address and is_secure(way):
        yield from of_large_packets(way, address, port)


def examine_engine(way: Way, address: str) -> Iterator[Finding]:
    """Steps 2 to 6. address is that of the handshake port; "" with a metadata store."""
    peer = way.arguments.peer
    landing = HostMemory(PAGE)
    try:
        with environment(APART), engines.engine(way.arguments, peer, landing) as engine:
            described = yield from ask(engine, peer, way.arguments.metadata)
            if described is None:
                return
            yield from of_peer(described)
            if described["buffers"] and (yield from of_data_port(described, address, way)):
                yield from examine_transfers(way, engine, landing)
    except CommandError as e:
        yield of_failed_start(str(e))


def examine_transfers(way: Way, engine: Engine, landing: HostMemory) -> Iterator[Finding]:
    """Steps 4 to 6."""
    try:
        with target_of(engine, way.arguments.peer, None, False, landing) as target:
            yield ok("transfer", "a first transfer has succeeded")
            if target.kind == "serve":
                yield ok("peer", f"the peer runs kvferry serve, with {target.place} memory")
            else:
                yield info("rate", "the peer's memory is only read: run kvferry serve there to measure WRITE, too")
            for direction in ("write", "read") if target.may_write else ("read",):
                found = measure_direction(way, direction, target)
                rates = {"usual": found.usual, "one": found.one, "several": found.several}
                way.measured[direction] = {
                    "expected": found.expected,
                    **{name: rate and rate.described() for name, rate in rates.items()},
                }
                yield from diagnose(found)
    except NotAllowedError as e:
        yield info("rate", f"{e}: no transfer is tried", "Run kvferry serve there to measure rates.")
    except CommandError as e:
        yield of_failure(str(e))


def of_url() -> Finding:
    """Step 1: a URL in place of a name. It is neither shown nor looked up: it may have a password."""
    return error(
        "name",
        "the peer's name is a URL, and has to be host:port",
        "Name the engine: its start line has the name (MC_LOG_LEVEL=INFO). --metadata takes a store's URL.",
    )


def of_name(host: str, found: connecting.Resolved) -> Iterator[Finding]:
    """Step 1: the name."""
    if found.problem:
        yield error("name", f"{host} leads to no address: {found.problem}", "Correct the name, or DNS, or /etc/hosts.")
    elif found.seconds > SLOW_NAMES:
        yield warning(
            "name", f"it took {found.seconds:.1f} s to find the address of {host}", "Look at /etc/resolv.conf."
        )
    else:
        yield ok("name", f"{host} is {', '.join(found.addresses)}")


def of_handshake_port(host: str, port: int, named: bool, attempts: list[connecting.Connected]) -> Iterator[Finding]:
    """Step 1: the port. named is whether the peer's name has it."""
    for attempt in attempts:
        where = f"port {port} at {attempt.address}"
        if not attempt.problem:
            yield ok("handshake port", f"{where} answers in {(attempt.round_trip or 0) * 1e3:.2f} ms")
        elif attempt.exhausted:
            yield no_descriptors()
        elif attempt.refused:
            yield error(
                "handshake port",
                f"nobody listens at {where}" if named else f"nobody listens at {where}, that of MC_HANDSHAKE_PORT",
                "Compare the port with the name in the peer's start line (MC_LOG_LEVEL=INFO there shows it)."
                if named
                else "Name the port, too: the peer's start line has its whole name (MC_LOG_LEVEL=INFO there shows it).",
            )
        elif attempt.problem == RESET:
            yield error("handshake port", f"connections to {where} are reset", OF_RESETS)
        else:
            yield error(
                "handshake port",
                f"{where} cannot be reached: {attempt.problem}",
                "Look for a firewall, a network policy or a missing route between the two machines.",
            )
    if len(attempts) > 1 and len({bool(attempt.problem) for attempt in attempts}) > 1:
        yield info("name", f"not all addresses of {host} lead to the peer: engines try them one after the other")


def of_path(reached: connecting.Connected) -> Iterator[Finding]:
    """The round trip, and the MTU of the path."""
    if (reached.round_trip or 0) > FAR:
        yield info(
            "round trip",
            f"a round trip to the peer takes {(reached.round_trip or 0) * 1e3:.1f} ms",
            "Transfer many blocks in one call: each call takes a round trip at least.",
        )
    source = addresses.source_address(reached.address)
    name = addresses.interface_of(source) if source else None
    own = addresses.interface(name).mtu if name else None
    if own and reached.path_mtu and reached.path_mtu < min(own, 65535):
        yield info("mtu", f"the path to the peer has an MTU of {reached.path_mtu}, and {name} has {own}")


def is_secure(way: Way) -> bool:
    """Whether an engine with these settings demands TLS, or prefers it."""
    return any(value(way.settings, name) for name in ("KVFERRY_SECRET_FILE", "KVFERRY_TLS_CERT"))


def of_large_packets(way: Way, address: str, port: int) -> Generator[Finding, None, bool]:
    """Whether packets as large as the interfaces allow get to the handshake port. It returns whether they are lost."""
    found = packets.largest(address, port, PATIENCE)
    way.measured["packets"] = found and found._asdict()
    if found is None or found.lost is None:
        if found is not None:
            yield ok("packet size", f"packets of {found.passes} bytes get to the peer")
        return False
    source = addresses.source_address(address)
    name = (addresses.interface_of(source) if source else None) or "the interface"
    smaller = "smaller ones neither" if found.passes is None else f"those of {found.passes} do"
    yield error(
        "packet size",
        f"packets of {found.lost} bytes do not get to the peer, {smaller}, and nothing says so: connections come up,"
        " and stand as soon as data is sent",
        f"Set the MTU of {name}, on both machines, to {found.passes or 'what the network takes'}, or let ICMP's"
        ' "fragmentation needed" through firewalls; net.ipv4.tcp_mtu_probing=1 finds the size by itself, slowly.',
    )
    return True


def ask(engine: Engine, peer: str, store: str) -> Generator[Finding, None, Description | None]:
    """Step 2. It returns the description, if there is one."""
    try:
        return engines.describe(engine, peer, ANSWER)
    except CommandError as e:
        text = str(e)
        if any(word in text for word in OF_SECURITY):
            yield error(
                "security",
                text,
                'Compare KVFERRY_SECURITY, and the digits after "the cluster secret" in the start lines of both'
                " machines, or their certificates.",
            )
        elif NO_FILES in text:
            yield no_descriptors()
        elif RESET.lower() in text:
            yield error("handshake", text, OF_RESETS)
        elif store != engines.P2P:
            yield error("handshake", text, f"Look at what kvferry ls STORE {peer} says, and at the log of the peer.")
        else:
            yield error(
                "handshake",
                text,
                "Look whether the port is that of the name in the peer's start line (MC_LOG_LEVEL=INFO there shows it),"
                " and not another program's. If it is, look at the log of the peer.",
            )
    return None


def of_peer(described: Description) -> Iterator[Finding]:
    """Step 2: what the peer says of itself."""
    identity = f"engine {described['identity']}" if described["identity"] else "an engine without an identity"
    yield ok(
        "identity", f"the peer is {identity}, {described['kind']}, {'with' if described['tls'] else 'without'} TLS"
    )
    if described["kind"] == "mooncake":
        yield info("peer", "the peer is Mooncake's: it has one connection for each request, and no TLS")
    if not described["buffers"]:
        yield error("memory", "the peer has registered no memory", "Register memory there, or run kvferry serve.")


def of_data_port(described: Description, handshake: str, way: Way) -> Generator[Finding, None, bool]:
    """Step 3. It returns whether the port can be reached."""
    published, _, text = described["data_address"].rpartition(":")
    published, port = published.strip("[]"), int(text)
    hosts = [host for host in dict.fromkeys((published, handshake)) if host]
    attempts: dict[str, connecting.Connected] = {}
    for host in hosts:
        for one in connecting.resolve(host).addresses[:1]:
            attempts[host] = connecting.connect(one, port, PATIENCE)
    way.measured["data"] = {host: attempt._asdict() for host, attempt in attempts.items()}
    reached = [host for host, attempt in attempts.items() if not attempt.problem]
    if any(attempt.exhausted for attempt in attempts.values()):
        yield no_descriptors()
        return False
    if not reached:
        reasons = "; ".join(f"{host}: {attempt.problem}" for host, attempt in attempts.items())
        advice = f"Let both ports through the firewall: the handshake port answers, and the data port {port} does not."
        if attempts.get(published) is None or published != handshake:
            advice += " Compare the address that the peer publishes with its real one, too."
        yield error("data port", f"the data port {port} cannot be reached ({reasons or published})", advice)
        return False
    if published and published not in reached:
        problem = attempts[published].problem if published in attempts else "it leads to no address"
        yield warning(
            "published address",
            f"the peer publishes the address {published}, which cannot be reached from here ({problem}); engines use"
            f" {reached[0]} instead, after they have tried",
            "Name the peer's engine by an address that its peers reach; with a metadata store set MC_TCP_BIND_ADDRESS.",
        )
    else:
        yield ok("data port", f"the data port answers at {reached[0]}:{port}")
    return True


def of_failure(text: str) -> Finding:
    """A transfer that failed."""
    if NO_FILES in text:
        return no_descriptors()
    return error(
        "transfer",
        text,
        "Look at the log of the peer. If transfers stall and the ports answer, compare the MTU of all interfaces on the"
        " way.",
    )


def measure_direction(way: Way, direction: str, target: Target) -> Measured:
    """Step 5."""
    lanes = lanes_of(way.settings)
    usual = measure_with(way, direction, target, {})
    few = lanes is not None and lanes < SEVERAL
    one = usual
    if usual.connections != 1:
        one = measure_with(way, direction, target, lanes_setting(1))
    several = measure_with(way, direction, target, lanes_setting(SEVERAL)) if few else None
    return Measured(usual, one, several, expected_rate(way))


def lanes_setting(number: int) -> dict[str, str]:
    """Settings for so many connections to a peer."""
    return {"MC_TCP_LANES_PER_PEER": str(number), "MC_TCP_ENABLE_CONNECTION_POOL": "1"}


def measure_with(way: Way, direction: str, target: Target, changes: Mapping[str, str]) -> Rate:
    """Measure with an engine of its own."""
    length = min(MOST, target.size)
    target.keep()
    try:
        memory = allocate("host", length)
    except PlaceError as e:
        raise CommandError(str(e)) from e
    arguments = argparse.Namespace(**vars(way.arguments))
    if arguments.metadata != engines.P2P:
        arguments.name = None  # the engine of step 2 has the name in the store
    with environment(changes), engines.engine(arguments, arguments.peer, memory) as engine:
        if engine.register(memory.address, length, memory.location, KVFERRY_ACCESS_NONE) != 0:
            raise CommandError(f"memory of this side cannot be registered: {engine.last_error()}")
        segment = engines.open_peer(engine, arguments.peer)
        there = Range(segment, memory.address, target.address, length)
        return measure(engine, direction, there, way.arguments.seconds)


def expected_rate(way: Way) -> float | None:
    """What a direction should reach, in bytes per second: as an option says, or as the interface's hardware does."""
    bits: float | None = way.arguments.expect
    if bits is None:
        name = addresses.interface_of(engines.own_address(way.arguments.peer))
        bits = addresses.interface(name).speed if name else None
    return None if bits is None else bits / 8
