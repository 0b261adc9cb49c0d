"""Memory in a peer and, beside it, the model of what it must hold."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from .pattern import BLOCK, pattern

if TYPE_CHECKING:
    from .peer import Peer

Span = tuple[int, int, int]
"""A block of a transfer: offset in the initiator's memory, offset in the target's, length."""

ARRIVAL_LIMIT = 30.0  # seconds a WRITE may take to arrive after a v1 initiator reported it


class Memory:
    """One region of a peer. `model` is what it must hold, the untouched parts included."""

    def __init__(self, peer: Peer, region: str, address: int, size: int) -> None:
        self.peer = peer
        self.region = region
        self.address = address
        self.size = size
        self.model = bytearray(size)

    def fill(self, seed: int) -> None:
        self.peer.ask("fill", region=self.region, seed=seed)
        self.model[:] = pattern(seed, self.size)

    def adopt(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Take what the memory holds now, from `offset` on, as what it must go on holding."""
        held = bytes.fromhex(self.peer.ask("peek", region=self.region, offset=offset, length=length or self.size))
        self.model[offset : offset + len(held)] = held

    def free(self) -> None:
        """Give the memory back. No engine may use it any more."""
        self.peer.ask("free_region", region=self.region)

    def holds(self) -> bool:
        """Tell whether every byte is as the model has it."""
        digest: str = self.peer.ask("digest", region=self.region)
        return digest == hashlib.sha256(self.model).hexdigest()

    def check(self) -> None:
        assert self.holds(), self._difference()

    def check_soon(self) -> None:
        """As check, but what is on its way may still arrive: a v1 WRITE ends when its bytes left the initiator."""
        deadline = time.monotonic() + ARRIVAL_LIMIT
        while not self.holds():
            assert time.monotonic() < deadline, self._difference()
            time.sleep(0.01)

    def _difference(self) -> str:
        blocks: list[str] = self.peer.ask("blocks", region=self.region)
        view = memoryview(self.model)
        wanted = [hashlib.sha256(view[i : i + BLOCK]).hexdigest() for i in range(0, self.size, BLOCK)]
        wrong = [i for i, (a, b) in enumerate(zip(blocks, wanted)) if a != b]
        if not wrong:
            return f"{self.peer}: {self.region} changed while it was looked at"
        start = wrong[0] * BLOCK
        length = min(BLOCK, self.size - start)
        found = bytes.fromhex(self.peer.ask("peek", region=self.region, offset=start, length=length))
        first = next((i for i in range(length) if found[i] != self.model[start + i]), 0)
        return (
            f"{self.peer}: {self.region} of {self.size} bytes differs in {len(wrong)} blocks of {BLOCK},"
            f" first at byte {start + first}: {found[first : first + 16].hex()}"
            f" instead of {bytes(self.model[start + first : start + first + 16]).hex()}"
        )


def addresses(local: Memory, remote: Memory, spans: Sequence[Span]) -> list[list[int]]:
    """Turn spans into the blocks that Peer.move takes."""
    return [[local.address + a, remote.address + b, length] for a, b, length in spans]


def apply(opcode: str, local: Memory, remote: Memory, spans: Sequence[Span]) -> None:
    """Do to the models what a transfer does to the memories."""
    for a, b, length in spans:
        if opcode == "write":
            remote.model[b : b + length] = local.model[a : a + length]
        else:
            local.model[a : a + length] = remote.model[b : b + length]


def transfer(
    local: Memory, remote: Memory, opcode: str, spans: Sequence[Span], how: str = "batch", notify: Sequence[str] = ()
) -> None:
    """Move spans between the memories of two peers, which must succeed, and do the same to their models."""
    result = local.peer.move(remote.peer.name, opcode, addresses(local, remote, spans), how, notify)
    assert result["code"] == 0, f"{local.peer}: {opcode} by {how} to {remote.peer} gave {result['code']}"
    apply(opcode, local, remote, spans)


def check_nothing_of(other: Memory, memory: Memory) -> None:
    """Check that no page of a memory holds what the other one has at the same place."""
    held = bytes.fromhex(memory.peer.ask("peek", region=memory.region, offset=0, length=memory.size))
    came = [i for i in range(0, min(len(held), other.size), BLOCK) if held[i : i + 16] == other.model[i : i + 16]]
    assert not came, f"{len(came)} pages of {memory.peer} hold what {other.peer} has, from byte {came[0]} on"
