"""The layouts of the demo's second part: prefill has blocks of 128 tokens with the heads first (HND), and decode has
blocks of 16 with the tokens first (NHD)."""

from __future__ import annotations

import math
from typing import NamedTuple

from kvferry import Layout
from kvferry.demo.cache import Cache, Shape, Table

SHORT, LONG = 16, 128  # tokens of a block
DIM = 128  # elements of a head
ELEMENT = 2  # bytes
HEAD = DIM * ELEMENT  # bytes of a head of one token

CHANGE = f"blocks of {LONG} tokens, heads first (HND) -> blocks of {SHORT}, tokens first (NHD)"


class Tensor:
    """An array of 2-byte elements at an address, as far as a layout asks."""

    def __init__(self, address: int, *shape: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": f"<f{ELEMENT}"}


class Tokens(NamedTuple):
    """Where decode has the tokens: the text of its layout, its blocks in order, and how many there are."""

    layout: str
    table: Table
    number: int


def heads(shape: Shape) -> int:
    """How many heads a block of 16 tokens has; 0 if its size is not that of any number of them."""
    whole, rest = divmod(shape.block_size, SHORT * HEAD)
    return whole if rest == 0 else 0


def short_blocks(cache: Cache) -> Tokens | None:
    """Where a cache of blocks of 16 tokens has them; None if its blocks have another size."""
    shape = cache.shape
    if not heads(shape):
        return None
    tensor = Tensor(cache.memory.address, shape.layers, 2, shape.blocks, SHORT, heads(shape), DIM)
    return Tokens(Layout(tensor, "layer kv block token head dim").json(), cache.table, shape.blocks * SHORT)


class LongCache(Cache):
    """A cache for the tokens of another one, in blocks of 128 tokens with the heads first."""

    def __init__(self, short: Shape, place: str) -> None:
        self.short = short
        self.heads = heads(short)
        longer = LONG // SHORT
        super().__init__(Shape(short.layers, math.ceil(short.blocks / longer), short.block_size * longer), place)

    def layout(self, layer: int) -> Layout:
        """One layer of the cache."""
        shape = self.shape
        size = shape.bytes // shape.layers
        tensor = Tensor(self.memory.address + layer * size, 1, 2, shape.blocks, self.heads, LONG, DIM)
        return Layout(tensor, "layer kv block head token dim", layers=(layer, shape.layers))

    def in_order(self, layer: bytes) -> list[bytes]:
        """The tokens of a layer as blocks of 16 have them, K's and then V's: a head of a token is one part."""
        parts = []
        for start in self.shape.offsets(0, self.table):
            for token in range(LONG):
                first = start + token * HEAD
                parts += [layer[at : at + HEAD] for at in range(first, first + self.shape.block_size, LONG * HEAD)]
        half, used = len(parts) // 2, self.short.blocks * SHORT * self.heads
        return parts[:used] + parts[half : half + used]
