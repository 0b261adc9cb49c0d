"""SGLang's own prefill and decode sides, between processes, with either engine under each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from real import programs
from real.forks import ForkedPeer, Nursery
from support import devices, ports
from support.memory import Memory
from support.peer import environment

KINDS = {"kvferry": "tensor", "mooncake": "tensor", "kvferry-npu": "npu:1"}  # of a side: the place of its KV cache
PAGE, AUX_ITEM = 8192, 512  # bytes
PAGES, STATE_PAGES, AUX_ITEMS = 256, 64, 16
REQUESTS, CHUNKS = 4, 3  # at once, and how many each has

rooms = itertools.count(1)
seeds = itertools.count(1)


class Side:
    """A process of SGLang."""

    def __init__(self, nursery: Nursery, mode: str, kind: str, log: Path) -> None:
        settings = programs.engine_settings(kind.split("-")[0])
        if kind == "kvferry-npu":
            settings.update(devices.settings(), ENABLE_ASCEND_TRANSFER_WITH_MOONCAKE="1")
        env = environment(settings, ours=kind != "mooncake")
        self.peer = ForkedPeer(nursery, f"{mode} on {kind}", env, log / f"{mode}-{kind}.log")
        place = KINDS[kind]
        self.kv = [self._memory(PAGES * PAGE, place) for _ in range(4)]  # K and V of two layers
        self.state = [self._memory(STATE_PAGES * PAGE, place) for _ in range(2)]
        self.aux = [self._memory(AUX_ITEMS * AUX_ITEM, "tensor") for _ in range(2)]
        self.address = f"127.0.0.1:{free_port()}"
        memories = {
            "kv": described(self.kv, PAGE),
            "state": described(self.state, PAGE),
            "aux": described(self.aux, AUX_ITEM),
        }
        port = int(self.address.split(":")[1])
        self.peer.ask("set_up", mode=mode, bootstrap_port=port, npu=1, memories=memories)
        engine = kind.split("-")[0]
        assert self.peer.ask("engine_file").startswith(str(programs.ENGINES[engine]))

    def _memory(self, size: int, place: str) -> Memory:
        return self.peer.memory(size, register=False, place=place)

    @property
    def memories(self) -> list[Memory]:
        return [*self.kv, *self.state, *self.aux]

    def fill(self) -> None:
        for memory in self.memories:
            memory.fill(next(seeds))

    def check(self) -> None:
        for memory in self.memories:
            memory.check()


class Request:
    """One request's pages on both sides."""

    def __init__(self, sources: Iterator[int], targets: Iterator[int], number: int, chance: random.Random) -> None:
        self.room = next(rooms)
        self.chunks = [take(sources, chance.randrange(1, 20)) for _ in range(CHUNKS)]
        self.pages = take(targets, sum(map(len, self.chunks)))
        self.state = (chance.sample(range(STATE_PAGES), 5), [5 * number + i for i in range(5)])
        self.aux = (chance.randrange(AUX_ITEMS), number)

    def receive(self, prefill: Side, decode: Side) -> Any:
        return decode.peer.start(
            "receive",
            prefill=prefill.address,
            room=self.room,
            pages=self.pages,
            aux=self.aux[1],
            state=self.state[1],
        )

    def expect(self, prefill: Side) -> None:
        prefill.peer.ask("expect", room=self.room, pages=len(self.pages), aux=self.aux[0])

    def send(self, prefill: Side) -> Any:
        return prefill.peer.start("send", room=self.room, chunks=self.chunks, state=self.state[0])

    def apply(self, prefill: Side, decode: Side) -> None:
        """Do to the models what the request does to the memories."""
        copy(prefill.kv, decode.kv, PAGE, [page for chunk in self.chunks for page in chunk], self.pages)
        copy(prefill.state, decode.state, PAGE, *self.state)
        copy(prefill.aux, decode.aux, AUX_ITEM, [self.aux[0]], [self.aux[1]])


def requests(count: int, seed: int) -> list[Request]:
    """Make requests that receive into different pages; the pages are in runs of several and alone."""
    chance = random.Random(seed)
    targets = runs(chance)
    return [Request(runs(chance), targets, number, chance) for number in range(count)]


def runs(chance: random.Random) -> Iterator[int]:
    """Yield all pages, in runs of up to 8, in no order."""
    pieces = [range(first, first + 8) for first in range(0, PAGES, 8)]
    chance.shuffle(pieces)
    return itertools.chain.from_iterable(pieces)


def take(pages: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(pages, count))


def copy(sources: Sequence[Memory], targets: Sequence[Memory], item: int, near: list[int], far: list[int]) -> None:
    for source, target in zip(sources, targets):
        for a, b in zip(near, far):
            target.model[b * item : (b + 1) * item] = source.model[a * item : (a + 1) * item]


def described(memories: Sequence[Memory], item: int) -> list[list[int]]:
    return [[memory.address, memory.size, item] for memory in memories]


def free_port() -> int:
    with ports.hold_range(1)[0] as held:
        return ports.port_of(held)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    env = environment({"PYTHONWARNINGS": "ignore"}, ours=False)
    log = tmp_path_factory.mktemp("sglang") / "import.log"
    made = Nursery(programs.interpreter("sglang"), "real.sglang_peer", env, log)
    yield made
    made.close()


@pytest.fixture(scope="module")
def sides(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Side]:
    """Every kind of side in both modes."""
    log = tmp_path_factory.mktemp("sides")
    return {(mode, kind): Side(nursery, mode, kind, log) for mode in ("prefill", "decode") for kind in KINDS}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("decode_kind", KINDS)
@pytest.mark.parametrize("prefill_kind", KINDS)
def test_every_byte_of_requests_arrives_and_nothing_else_changes(
    sides: dict[tuple[str, str], Side], prefill_kind: str, decode_kind: str
) -> None:
    prefill, decode = sides["prefill", prefill_kind], sides["decode", decode_kind]
    prefill.fill()
    decode.fill()
    made = requests(REQUESTS, seed=next(seeds))
    received = [request.receive(prefill, decode) for request in made]
    for request in made:
        request.expect(prefill)
    sent = [request.send(prefill) for request in made]
    assert [answer.result() for answer in (*sent, *received)] == ["success"] * 2 * REQUESTS
    for request in made:
        request.apply(prefill, decode)
    prefill.check()
    decode.check()


@pytest.mark.timeout(600)
def test_a_request_to_a_decode_side_that_died_fails_and_others_go_on(
    nursery: Nursery, sides: dict[tuple[str, str], Side], tmp_path: Path
) -> None:
    prefill, other = sides["prefill", "kvferry"], sides["decode", "kvferry"]
    dying = Side(nursery, "decode", "kvferry", tmp_path)
    prefill.fill()
    other.fill()
    lost, kept = requests(2, seed=next(seeds))
    lost.receive(prefill, dying)
    lost.expect(prefill)
    dying.peer.kill()
    assert lost.send(prefill).result().startswith("failed: ")
    received = kept.receive(prefill, other)
    kept.expect(prefill)
    assert (kept.send(prefill).result(), received.result()) == ("success", "success")
    kept.apply(prefill, other)
    prefill.check()
    other.check()
