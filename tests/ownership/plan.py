"""What a seed means: which worlds there are, which engines are in them, and what each of their streams does.

Choices depend on the seed alone, never on when something ends: each stream has a generator of its own, and draws all
that a step needs before the step begins.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Collection, Iterator, Sequence

from support.world import QUICK

from . import arena, model, worker
from .model import Span

PEERS = ("kvferry", "mooncake")
WAYS = ("samehost", "tcp", "link")
MEMORY = ("host", "device")
ASPECTS = {"peers": PEERS, "way": WAYS, "memory": MEMORY}

WORLDS = (
    ("kvferry", "samehost", "host"),
    ("kvferry", "tcp", "host"),
    ("kvferry", "link", "host"),
    ("mooncake", "tcp", "host"),
    ("kvferry", "samehost", "device"),
    ("kvferry", "tcp", "device"),
    ("mooncake", "tcp", "device"),
)

# What can go wrong, and in which worlds.
FAULTS = {
    "giveup": "calls give up after a while that is drawn, or discard their batch",
    "retract": "a buffer is unregistered while a call uses it",
    "withdraw": "offered memory is unregistered, and registered again",
    "stale": "calls name an engine that is gone",
    "stop": "SIGSTOP, and SIGCONT after a while",
    "kill": "SIGKILL, and another process",
    "restart": "the engine is closed, and made anew in the same process",
    "fork": "a forked child holds the descriptors for a while",
    "reset": "data connections are aborted as by a box between two hosts",
    "cut": "a link loses everything for a while, in one direction or both",
    "replace": "a process is replaced while its peers are stopped, with calls that wait for it",
    "reuse": "a process dies while a forked child holds its connections, and its id is another's",
}
OF_CALLS = ("giveup", "retract", "stale", "withdraw")  # no victims are drawn for these

MOONCAKE = "0.3.13"
LOWEST_PORT = 20000
POOL = 5  # ports that two slots share
PLACES_OF_DEVICES = ("host", "npu:0", "cuda:0", "npu:1", "cuda:1")
FRAMINGS: tuple[dict[str, str], ...] = (
    *([{}] * 7),
    {"MC_TCP_PROTO": "1"},
    {"MC_TCP_ENABLE_CONNECTION_POOL": "0"},
)
HOT = 5  # places of a world that many transfers meet in
AGAIN = 0.6  # of the calls are to the places of the one before
LONG = 1 << 15  # words: bytes of a transfer of so many may wait in a socket while others pass it
SHORTEST_LIMIT, LONGEST_LIMIT = 0.002, 1.5  # seconds
RETRACTED = 0.3  # of the calls that are submitted apart
STALE = 0.1
PRIVATE = 0.25  # of the worlds of one host


@dataclasses.dataclass(frozen=True)
class Position:
    """A worker's place in a world: what it runs, where its areas are, and its environment."""

    kind: str  # "ours" or a version of Mooncake
    places: Sequence[str]  # of each area
    settings: dict[str, str]
    private: bool = False  # other processes may not read its memory, although they are of the same user

    @property
    def ours(self) -> bool:
        return self.kind == "ours"


@dataclasses.dataclass(frozen=True)
class World:
    """The engines of a world and what may go wrong between them."""

    number: int
    seed: str
    peers: str
    way: str
    memory: str
    positions: Sequence[Position]
    faults: Sequence[str]
    hot: Sequence[Sequence[Span]]

    def __str__(self) -> str:
        return f"world {self.number} ({self.peers}, {self.way}, {self.memory} memory)"


def worlds(seed: int, only: Collection[str], faults: Collection[str], lacking: Collection[str]) -> Iterator[World]:
    """The worlds of a seed, without end: rounds of all kinds of them in random order. `only` has words of ASPECTS, of
    which those of one aspect exclude the others of it; `lacking` are words of things that the machine cannot do."""
    allowed = [
        kind
        for kind in WORLDS
        if all(not set(only) & set(aspect) or word in only for word, aspect in zip(kind, ASPECTS.values()))
        and not set(kind) & set(lacking)
    ]
    if not allowed:
        raise ValueError(f"no world is left of {', '.join(only) or 'all'}")
    for number in itertools.count():
        turn, index = divmod(number, len(allowed))
        order = random.Random(f"{seed}/{turn}").sample(allowed, len(allowed))
        yield world(number, f"{seed}/{number}", order[index], [f for f in faults if f not in lacking])


def world(number: int, seed: str, kind: tuple[str, str, str], faults: Sequence[str]) -> World:
    peers, way, memory = kind
    chance = random.Random(seed)
    shared = chance.random() < 0.5  # ports
    seconds, private = chance.choice(("0", "1")), chance.random() < PRIVATE and way == "samehost" and memory == "host"
    positions = [
        position(chance, index, each, way, memory, shared, seconds, private)
        for index, each in enumerate(kinds(chance, peers, memory))
    ]
    possible = {
        "cut": way == "link",
        "reset": way != "samehost",
        "reuse": way == "samehost" and memory == "host",
    }
    own = [fault for fault in faults if possible.get(fault, True)]
    hot = [spans(chance, shortest) for shortest in (1, 1, *([LONG] * (HOT - 2)))]
    return World(number, seed, peers, way, memory, positions, own, hot)


def kinds(chance: random.Random, peers: str, memory: str) -> list[str]:
    """The engines of a world."""
    if peers == "kvferry":
        return ["ours"] * (4 if memory == "host" else 3)
    return ["ours", MOONCAKE, "ours"]


def position(
    chance: random.Random,
    index: int,
    kind: str,
    way: str,
    memory: str,
    shared: bool,
    slice_seconds: str,
    private: bool,
) -> Position:
    """Draw one. In every position as much is drawn."""
    framing, lanes, size = chance.choice(FRAMINGS), chance.choice("1124"), chance.choice(("65536", "262144", "1048576"))
    places = [chance.choice(PLACES_OF_DEVICES) for _ in range(arena.AREAS)]
    seed = chance.randrange(1, 1 << 16)
    settings = {
        **QUICK,
        **ports(index, shared),
        "MC_LOG_LEVEL": "WARNING",
        "KVFERRY_SAME_HOST": str(int(way == "samehost")),
        "KVFERRY_SIM_SEED": str(seed),
        "MC_TCP_LANES_PER_PEER": lanes,
        "MC_TCP_SLICE_SIZE": size,
        "MC_SLICE_TIMEOUT": slice_seconds,
        **(framing if way != "samehost" else {}),
        "GOTRACEBACK": "all",
    }
    if kind != "ours":
        return Position(kind, [worker.HOST] * arena.AREAS, {**QUICK, "MC_FORCE_TCP": "1"})
    return Position(kind, places if memory == "device" else [worker.HOST] * arena.AREAS, settings, private)


def ports(index: int, shared: bool) -> dict[str, str]:
    """The ports of a position, which its engines keep to: two of its own, or some that it shares with its neighbour. An
    engine that is made anew has the name of the one before it now and then, or its data port with another name."""
    first = LOWEST_PORT + 10 * (index // 2 if shared else index)
    last = first + (POOL if shared else 2) - 1
    return {"MC_MIN_RPC_PORT": str(first), "MC_MAX_RPC_PORT": str(last)}


# Steps of streams.


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A call: between a buffer and the region of a slot."""

    opcode: str
    target: int
    stale: float  # which of the names of engines that are gone, from 0 to 1; or -1 for the latest name of the slot
    region: int
    spans: Sequence[Span]
    way: str
    limit: float  # seconds
    retract: float  # seconds after which the buffer is unregistered; or -1
    pause: float  # seconds before the next one


def transfers(world: World, slot: int, stream: int) -> Iterator[Transfer]:
    """The calls of a stream, without end."""
    chance = random.Random(f"{world.seed}/transfers/{slot}/{stream}")
    ours = world.positions[slot].ours
    ways = [*worker.WAYS] if ours and "giveup" in world.faults else [*worker.MOONCAKES_WAYS]
    targets = [index for index in range(len(world.positions)) if ours or index != slot]
    target, region, place = 0, 0, world.hot[0]
    for number in itertools.count():
        opcode = chance.choice(("write", "write", "read"))
        other = (
            chance.choice(targets),
            chance.randrange(arena.REGIONS),
            chance.choice((*([*world.hot] * 2), spans(chance))),
        )
        if chance.random() >= AGAIN or number == 0:
            target, region, place = other
        way, limit = chance.choice(ways), log_uniform(chance, SHORTEST_LIMIT, LONGEST_LIMIT)
        retract = log_uniform(chance, 0.0005, 0.3)
        is_retracted = chance.random() < RETRACTED and ours and "retract" in world.faults and way in worker.SUBMITTING
        stale, is_stale = chance.random(), chance.random() < STALE
        pause = chance.expovariate(1 / 0.01)
        yield Transfer(
            opcode,
            target,
            stale if is_stale and "stale" in world.faults else -1,
            region,
            place,
            way,
            limit,
            retract if is_retracted else -1,
            pause,
        )


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    kind: str
    victim: int
    seconds: float  # that it lasts
    both: bool  # a second choice that some kinds have
    pause: float  # seconds before the next one


def faults(world: World, stream: int) -> Iterator[Fault]:
    """The faults of a stream, without end: each kind as often as any other."""
    chance = random.Random(f"{world.seed}/faults/{stream}")
    deck = [fault for fault in world.faults if fault not in OF_CALLS]
    while deck:
        for kind in chance.sample(deck, len(deck)):
            yield Fault(
                kind,
                chance.randrange(len(world.positions)),
                log_uniform(chance, 0.1, 2.5),
                chance.random() < 0.5,
                log_uniform(chance, 0.05, 1.0),
            )


@dataclasses.dataclass(frozen=True)
class Withdrawal:
    """A region is taken back, rests, and is offered again."""

    region: int
    rest: float  # seconds
    pause: float


def withdrawals(world: World, slot: int) -> Iterator[Withdrawal]:
    chance = random.Random(f"{world.seed}/withdrawals/{slot}")
    while True:
        region, rest, pause = (
            chance.randrange(arena.REGIONS), log_uniform(chance, 0.02, 0.5), log_uniform(chance, 0.1, 2)
        )  # fmt: skip
        yield Withdrawal(region, rest, pause)


def spans(chance: random.Random, shortest: int = 1) -> list[Span]:
    """Places that do not meet: one span of any length from the shortest on, or several short ones."""
    if shortest > 1 or chance.random() < 0.6:
        count = round(log_uniform(chance, shortest, model.PLACES))
        return [Span(chance.randrange(model.PLACES - count + 1), count)]
    number = chance.randrange(2, 17)
    room = model.PLACES // number
    found = []
    for index in range(number):
        count = round(log_uniform(chance, 1, min(room, 8192)))
        found.append(Span(index * room + chance.randrange(room - count + 1), count))
    return chance.sample(found, len(found))


def log_uniform(chance: random.Random, low: float, high: float) -> float:
    return math.exp(chance.uniform(math.log(low), math.log(high)))
