"""Single requests whose lengths need more than 31 and more than 32 bits, looked at around the ends of those ranges.

Host memory that is read and was never written takes none, so it is the source of the longest ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support import devices
from support.pattern import pattern
from support.peer import Peer
from support.peers import Peers, unavailable

pytestmark = pytest.mark.devices

GIB = 1 << 30
SAMPLE = 4098  # bytes that are looked at around each place
MARGIN = 61  # bytes before and after the block, which must not be touched
UNTOUCHED = b"\xee" * MARGIN
LIMIT = 120.0  # seconds that one transfer may take
LONG = 2 * GIB + 12347
LONGER = 4 * GIB + 12347


class Large:
    """Registered memory with one large block in it, of which only samples are filled and looked at."""

    def __init__(self, peer: Peer, place: str, length: int, start: int) -> None:
        self.peer = peer
        self._region = place
        self._start = start
        size = start + length + MARGIN
        self.address = peer.ask("region", region=place, size=size, place=place) + start
        assert peer.call("register_memory", self.address - start, size) == 0
        middles = [m for m in (GIB, 2 * GIB, 3 * GIB, 4 * GIB) if m + SAMPLE < length]
        self._samples = [0, *(m - SAMPLE // 2 for m in middles), length - SAMPLE]
        self._margins = (-MARGIN, length)

    def fill(self) -> None:
        """Put something else in every sample."""
        for place in self._samples:
            self._poke(place, pattern(place, SAMPLE))

    def mark_margins(self) -> None:
        for place in self._margins:
            self._poke(place, UNTOUCHED)

    def check(self) -> None:
        """Compare every sample with what fill() put there, and the margins with what mark_margins() did."""
        for place in self._samples:
            assert self._peek(place, SAMPLE) == pattern(place, SAMPLE), f"differs around byte {place} of the block"
        for place in self._margins:
            assert self._peek(place, MARGIN) == UNTOUCHED, f"byte {place} or after it was touched"

    def _poke(self, place: int, data: bytes) -> None:
        self.peer.ask("poke", region=self._region, offset=self._start + place, data=data.hex())

    def _peek(self, place: int, length: int) -> bytes:
        found: str = self.peer.ask("peek", region=self._region, offset=self._start + place, length=length)
        return bytes.fromhex(found)


def available_memory() -> int:
    """Return how many bytes new memory may take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


@pytest.mark.parametrize(
    "near,far,opcode,length",
    (
        ("npu:0", "host", "read", LONGER),
        ("host", "cuda:0", "write", LONGER),
        ("npu:0", "host", "write", LONG),
        ("host", "npu:0", "read", LONG),
        ("cuda:0", "host", "read", LONG),
    ),
)
def test_a_request_of_gibibytes_arrives_whole(start_peer: Peers, near: str, far: str, opcode: str, length: int) -> None:
    if available_memory() < 2 * LONG + 2 * GIB:
        unavailable(f"two regions of {LONG >> 30} GiB do not fit into {available_memory() >> 30} GiB of memory")
    patient = {"MC_TRANSFER_TIMEOUT": f"{LIMIT:.0f}"}
    initiator, target = (devices.start(start_peer, **patient).create() for _ in range(2))
    local, remote = Large(initiator, near, length, MARGIN + 6), Large(target, far, length, MARGIN + 10)
    source, destination = (local, remote) if opcode == "write" else (remote, local)
    source.fill()
    destination.mark_margins()
    moved = initiator.move(target.name, opcode, [[local.address, remote.address, length]], limit=LIMIT)
    assert moved["code"] == 0
    destination.check()
