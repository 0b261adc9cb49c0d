"""An initiator and a target of ours, with memory each, that can tell by which path they have met."""

from __future__ import annotations

from collections.abc import Sequence

from . import devices, wire
from .memory import Memory, Span, transfer
from .paths import SAMEHOST, TCP
from .peers import Peers
from .process import connections_to
from .spans import scattered
from .world import QUICK

SIZE = 5 << 20
SIZES = (1, 2, 7, 8, 100, 1023, 2048, 4095, 4096, 4097, 65536, 65537, 262147, 1048577, 2097155)


class Couple:
    """The memory of the initiator is at a place, that of the target is the host's."""

    def __init__(self, peers: Peers, place: str = "host", **settings: str) -> None:
        self.initiator = peers(**QUICK, **devices.needed(place), **settings).create()
        self.target = peers(**QUICK).create()
        self.near = self.initiator.memory(SIZE, 1, place=place)
        self.far = self.target.memory(SIZE, 2)

    def transfer(self, opcode: str, how: str = "batch", seed: int = 0) -> None:
        """Move blocks of all sizes, and compare both memories as a whole."""
        self.move(opcode, scattered(SIZES, seed), how)

    def move(self, opcode: str, spans: Sequence[Span], how: str = "batch") -> None:
        transfer(self.near, self.far, opcode, spans, how)
        self.near.check()
        self.far.check()

    @property
    def path(self) -> str:
        """The path that their connections take."""
        return met_by(self.far)


def met_by(memory: Memory) -> str:
    """Return by which path others are connected to the engine of a memory."""
    return TCP if connections_to(wire.data_address(memory.peer.name)[1]) else SAMEHOST
