"""Plans between two peers, compared byte for byte on both sides."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np

from kvferry import Layout

from .memory import Memory
from .pairs import Pair

HEADS, BYTES = 4, 24  # of a head of one token
TOKENS = 300


class At:
    """An array of bytes at an address of some process."""

    def __init__(self, address: int, *shape: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": "|u1"}


class Side(NamedTuple):
    """A cache of two layers, K and V, in all blocks of a process's memory, with the tokens of a request in some."""

    memory: Memory
    axes: str
    shape: tuple[int, ...]
    block_tokens: int
    table: list[int]
    first: int

    def argument(self) -> tuple[str, list[int], int]:
        """What the worker takes."""
        return Layout(At(self.memory.address, *self.shape), self.axes).json(), self.table, self.first

    def tokens(self) -> Any:
        """The blocks of the model's memory as [block, token, layer, kv, head, dim], to be indexed by token."""
        cache = np.frombuffer(self.memory.model, np.uint8)[: math.prod(self.shape)].reshape(self.shape)
        names = self.axes.split()
        return cache.transpose([names.index(a) for a in ("block", "token", "layer", "kv", "head", "dim")])

    def places(self) -> tuple[list[int], list[int]]:
        positions = range(self.first, self.first + TOKENS)
        return [self.table[p // self.block_tokens] for p in positions], [p % self.block_tokens for p in positions]


def side(rng: random.Random, memory: Memory, axes: str, block_tokens: int) -> Side:
    sizes = {"layer": 2, "kv": 2, "token": block_tokens, "head": HEADS, "dim": BYTES}
    sizes["block"] = memory.size // math.prod(sizes.values())
    shape = tuple(sizes[name] for name in axes.split())
    first = rng.randrange(block_tokens)
    table = rng.sample(range(sizes["block"]), math.ceil((first + TOKENS) / block_tokens))
    return Side(memory, axes, shape, block_tokens, table, first)


def move_between_layouts(pair: Pair, opcode: str, seed: int) -> None:
    """Have our engine move tokens between layouts, and check that nothing else has changed on either side."""
    rng = random.Random(seed)
    pair.fill(seed)
    ours = side(rng, pair.ours, "layer kv block token head dim", 128)
    theirs = side(rng, pair.theirs, "block layer kv head token dim", 16)
    sides = [ours.argument(), theirs.argument()]
    target = pair.theirs.peer.name
    pair.ours.peer.ask("plan", engine="main", opcode=opcode, target=target, sides=sides, tokens=TOKENS)
    source, destination = (ours, theirs) if opcode == "write" else (theirs, ours)
    destination.tokens()[destination.places()] = source.tokens()[source.places()]
    pair.ours.check()
    pair.theirs.check()
