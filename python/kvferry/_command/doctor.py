"""kvferry doctor: says what is wrong, or slower than it could be, and what to do about it."""

from __future__ import annotations

import argparse
from typing import Any

from kvferry._command import doctor_host, doctor_peer, engines, findings, settings
from kvferry._command.declaration import Command, Example, option
from kvferry._command.findings import Finding
from kvferry._command.output import Output
from kvferry._options import seconds, takes


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command."""
    found = settings.read()
    measured: dict[str, Any] = {}
    if arguments.peer is None:
        steps = doctor_host.examine(arguments, found)
    else:
        steps = doctor_peer.examine(doctor_peer.Way(arguments, found, measured))
    all_findings: list[Finding] = []
    for finding in steps:
        findings.show([finding], out)
        all_findings.append(finding)
    return findings.conclude(all_findings, measured, out)


@takes("a number of bits per second, perhaps with K, M or G after it")
def bits(text: str) -> float:
    """A rate in bits per second, perhaps with M or G after it. ValueError for any other text."""
    scale = {"K": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:].upper(), 1)
    number = float(text[:-1] if scale > 1 else text) * scale
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


COMMAND = Command(
    name="doctor",
    help="find out what is wrong, or slower than it could be",
    description="Without a peer, examine this machine: whether an engine starts, addresses, ports, limits, TCP,"
    " processors, devices and settings. With one, examine the way to it: name, ports, security, the address that it"
    " publishes, round trip, rates, and what limits them. Each finding has a severity, and says what to do. The rates"
    " of a peer that runs kvferry serve are measured in both directions; memory of other peers is only read.",
    run=run,
    options=(
        option("peer", nargs="?", metavar="PEER", help="the peer's name, as host:port; with a store its name there"),
        option(
            "--seconds",
            type=seconds,
            default=1.0,
            metavar="TIME",
            help="how long each rate is measured, in seconds (%(default)s)",
        ),
        option(
            "--expect",
            type=bits,
            metavar="RATE",
            help="rate that the network should have, in bits per second, as 25G (the interface's speed, where the"
            " hardware tells it)",
        ),
        *engines.ENGINE,
    ),
    examples=(
        Example("kvferry doctor", "examine this machine"),
        Example("kvferry doctor 10.0.0.2:15001 --expect 100G", "examine the way to a peer"),
        Example("kvferry -q doctor", "print errors and warnings only"),
    ),
)
