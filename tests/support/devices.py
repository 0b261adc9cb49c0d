"""Peers of ours that have memory on NPUs and GPUs, simulated ones unless the environment names a real library."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from kvferry import simulator

from . import runtimes
from .memory import Memory, Span
from .peer import Peer
from .peers import Peers, unavailable
from .process import soon

VARIABLES = {"npu": "KVFERRY_ASCENDCL", "cuda": "KVFERRY_CUDA"}  # by which engines find the libraries
# Tests count calls and have them fail, so engines make no others to measure the devices.
SIMULATED = {"KVFERRY_SIM_DEVICES": "2", "KVFERRY_SIM_COST": "0", "KVFERRY_DEVICE_COPY": "default"}
NPUS = ("npu:0", "npu:1")
GPUS = ("cuda:0", "cuda:1")
DEVICES = (*NPUS, *GPUS)
SECOND = (NPUS[1], GPUS[1])
PLACES = ("host", "npu-pinned:0", "cuda-pinned:0", *DEVICES, "managed:0", "virtual:0")

LATE = 10.0  # seconds within which an engine gives back what a device that hung had

Move = tuple[Memory, Memory, Span]
"""A block of a transfer between one of several memories on each side."""


def library(kind: str) -> str:
    """Return the library that peers use: the one that the environment names, or else the simulator."""
    named = (os.environ.get(names[kind]) for names in (runtimes.VARIABLES, VARIABLES))
    return next(filter(None, named), None) or simulator.library(kind)


def settings(**more: str) -> dict[str, str]:
    """Return the environment in which a peer finds the devices."""
    found = {names[kind]: library(kind) for names in (VARIABLES, runtimes.VARIABLES) for kind in VARIABLES}
    return {**found, **SIMULATED, **more}


def needed(place: str) -> dict[str, str]:
    """Return the settings of a peer with memory at a place: none where that is the host's."""
    return {} if place == "host" else settings()


def start(peers: Peers, **more: str) -> Peer:
    """Start a peer of ours, without an engine, that finds the devices."""
    return peers("ours", **settings(**more))


@dataclass(frozen=True)
class Release:
    """Releases of CANN and of CUDA's driver, as settings of peers. Older ones have no batched copies, and CANN cannot
    be asked where memory is."""

    settings: Mapping[str, str]
    older: bool

    def location(self, place: str) -> Optional[str]:
        """Return what whoever registers memory must say of its place."""
        return place if self.older and place in NPUS else None


class Side:
    """An engine and its memory: one region for each of `places`, all of one size."""

    def __init__(self, peer: Peer, size: int, release: Release, places: Sequence[str] = PLACES) -> None:
        self.peer = peer
        self.memories = {place: peer.memory(size, place=place, location=release.location(place)) for place in places}

    def __getitem__(self, place: str) -> Memory:
        return self.memories[place]

    def fill(self, seed: int) -> None:
        for i, memory in enumerate(self.memories.values()):
            memory.fill(1000 * seed + i)

    def check(self) -> None:
        for memory in self.memories.values():
            memory.check()


def spread(lengths: Sequence[int], nears: Sequence[Memory], fars: Sequence[Memory], seed: int) -> list[Move]:
    """Lay blocks out over the memories of two sides, at random, with gaps of odd lengths between them."""
    chance = random.Random(seed)
    ends = dict.fromkeys((*nears, *fars), 1)
    moves: list[Move] = []
    for length in lengths:
        near, far = chance.choice(nears), chance.choice(fars)
        moves.append((near, far, (ends[near], ends[far], length)))
        for memory in (near, far):
            ends[memory] += length + chance.choice((0, 1, 3, 61))
            assert ends[memory] <= memory.size
    chance.shuffle(moves)
    return moves


def blocks(moves: Sequence[Move]) -> list[list[int]]:
    """Turn moves into the blocks that Peer.move takes."""
    return [[near.address + a, far.address + b, length] for near, far, (a, b, length) in moves]


def apply(opcode: str, moves: Sequence[Move]) -> None:
    """Do to the models what a transfer does to the memories."""
    for near, far, (a, b, length) in moves:
        if opcode == "write":
            far.model[b : b + length] = near.model[a : a + length]
        else:
            near.model[a : a + length] = far.model[b : b + length]


def transfer(opcode: str, moves: Sequence[Move], how: str = "batch") -> None:
    """Move blocks between two sides in one call, which must succeed, and do the same to the models."""
    near, far, _ = moves[0]
    result = near.peer.move(far.peer.name, opcode, blocks(moves), how)
    assert result["code"] == 0, f"{near.peer}: {opcode} by {how} to {far.peer} gave {result['code']}"
    apply(opcode, moves)


# The simulator.


@functools.cache
def simulated(kind: str) -> bool:
    """Tell whether the devices of a kind are simulated ones."""
    file = Path(library(kind))
    return file.is_file() and b"kvferry_sim_report" in file.read_bytes()


def need_simulator(kind: str) -> None:
    """Skip the test where there are real devices of the kind."""
    if not simulated(kind):
        unavailable(f"this needs simulated devices: unset {VARIABLES[kind]} and {runtimes.VARIABLES[kind]}")


def need_two(kind: str) -> None:
    """Skip the test where there is only one device of the kind."""
    if not simulated(kind) and runtimes.open_runtime(kind, library(kind)).devices() < 2:
        unavailable(f"this needs two devices of the kind {kind}")


def simulate(peer: Peer, kind: str, control: str, *arguments: Any) -> Any:
    """Use a control of the peer's simulated devices of a kind, see runtimes.Simulator; real ones have none."""
    need_simulator(kind)
    return peer.ask("simulate", kind=kind, control=control, arguments=arguments)


def check_nothing_left(report: dict[str, Any], tolerated: Collection[str] = ()) -> None:
    """Fail where a simulator's report tells of something not given back, or of misuse that is not tolerated."""
    for what in ("leaked", "misuse"):
        found = {name: count for name, count in report[what].items() if count and name not in tolerated}
        assert not found, f"the simulator reports {what}: {found}"


def nothing_leaked(peer: Peer, kind: str) -> bool:
    return not any(simulate(peer, kind, "report")["leaked"].values())


def end(peer: Peer, late: bool = False) -> None:
    """End the peer's engine and free the memory of the tests; the simulators must then know of nothing that is left.

    What a device that hung had until now may be given back late.
    """
    peer.ask("drop", engine="main")
    for kind in filter(simulated, VARIABLES):
        simulate(peer, kind, "faults", "")  # so that the tests' own memory can be freed
    peer.ask("free_regions")
    for kind in filter(simulated, VARIABLES):
        if late:
            soon(functools.partial(nothing_leaked, peer, kind), LATE)
        check_nothing_left(simulate(peer, kind, "report"))
