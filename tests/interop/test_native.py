"""The native package with unmodified Mooncake on the other side, and with our drop-in."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvferry import Engine, Layout, Message, RangeRejected, plan
from support.memory import Memory
from support.pairs import KINDS, SETTINGS, SETTINGS_OF
from support.peers import Peers
from support.process import until
from support.spans import scattered

SIZE = 3 << 20
LIMIT = 60.0  # seconds that anything here may take

seeds = itertools.count(90)


class Sides:
    """A native engine of this process with registered memory, and a peer with its own."""

    def __init__(self, theirs: Memory) -> None:
        self.theirs = theirs
        self.engine = Engine()
        self.memory = np.zeros(SIZE, np.uint8)
        self.region = self.engine.register(self.memory)
        self.peer = self.engine.open(theirs.peer.name)

    def fill(self, seed: int) -> None:
        self.memory[:] = np.frombuffer(random.Random(seed).randbytes(SIZE), np.uint8)
        self.theirs.fill(seed)


@pytest.fixture(scope="module", params=KINDS)
def sides(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Sides]:
    kind = request.param
    settings = SETTINGS["default"] if "default" in SETTINGS_OF.get(kind, SETTINGS) else {}
    peer = module_peers(kind, **settings)
    peer.create()
    made = Sides(peer.memory(SIZE, 1))
    yield made
    made.engine.close()
    peer.kill()


def test_lists_move_both_ways_and_nothing_else(sides: Sides) -> None:
    seed = next(seeds)
    sides.fill(seed)
    spans = scattered([1, 3, 4096, 65537, 300_000], seed)
    local = [sides.region[here : here + n] for here, _, n in spans]
    remote = [sides.theirs.address + there for _, there, _ in spans]
    assert sides.peer.write(local, remote).result(LIMIT) == sum(n for _, _, n in spans)
    for here, there, n in spans:
        sides.theirs.model[there : there + n] = sides.memory[here : here + n].tobytes()
    sides.theirs.check()
    wanted = sides.memory.copy()
    sides.memory[:] = 0

    async def program() -> None:
        await asyncio.gather(*(sides.peer.read(here, there) for here, there in zip(local, remote)))

    asyncio.run(program())
    for here, _, n in spans:
        assert (sides.memory[here : here + n] == wanted[here : here + n]).all()
        sides.memory[here : here + n] = 0
    assert not sides.memory.any()


class At:
    """An array of bytes at an address of the peer."""

    def __init__(self, address: int, *shape: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": "|u1"}


def test_a_plan_moves_between_layouts(sides: Sides) -> None:
    sides.fill(next(seeds))
    shape = 8, 128, 4, 24
    mine = sides.memory[: 8 * 128 * 4 * 24].reshape(shape)
    source = Layout(mine, "block token head dim").blocks([3, 1], first=7)
    destination = Layout(At(sides.theirs.address, 64, 4, 16, 24), "block head token dim").blocks(range(20, 0, -1))
    assert sides.peer.write(plan(source, destination, 200)).result(LIMIT) == 200 * 4 * 24
    theirs = np.frombuffer(sides.theirs.model, np.uint8)[: mine.nbytes].reshape(64, 4, 16, 24)
    for i in range(200):
        block, token = (3, 1)[(i + 7) // 128], (i + 7) % 128
        theirs[20 - i // 16, :, i % 16] = mine[block, token]
    sides.theirs.check()


def test_a_range_that_they_did_not_register_is_rejected(sides: Sides) -> None:
    with pytest.raises(RangeRejected) as caught:
        sides.peer.read([sides.region[:8], sides.region[:64]], [sides.theirs.address, 4096]).result(LIMIT)
    assert (caught.value.index, caught.value.remote, caught.value.nbytes) == (1, 4096, 64)


def test_messages_are_notifications(sides: Sides) -> None:
    sides.peer.send(Message(b"text", "name")).result(LIMIT)
    sides.peer.write(sides.region[:8], sides.theirs.address, notify=Message(b"\0\xff", "bytes")).result(LIMIT)
    notifies: Any = sides.theirs.peer.ask("notifies", engine="main")
    assert notifies == [["name", "text"], ["bytes;base64", "AP8="]]


def test_they_read_and_write_its_regions(sides: Sides) -> None:
    sides.fill(next(seeds))
    ours, theirs = slice(100, 50_100), slice(4096, 54_096)
    ranges = [[sides.theirs.address + theirs.start, sides.region.address + ours.start, 50_000]]

    def move(opcode: str) -> None:
        assert sides.theirs.peer.move(sides.engine.name, opcode, ranges, "sync")["code"] == 0

    def arrived() -> bool:
        return bool(sides.memory[ours].tobytes() == sides.theirs.model[theirs])

    move("write")
    until(arrived, LIMIT, "what they have written arrives: version 1 reports it early")
    sides.memory[ours] ^= 0xFF
    move("read")
    sides.theirs.model[theirs] = sides.memory[ours].tobytes()
    sides.theirs.check_soon()
