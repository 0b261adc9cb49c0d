"""Changes of layout: caches of one model's KV that lie in different ways at both ends, and where their bytes are.

Shared by the processes at both ends and by the one that asks them, so it needs nothing but Python.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from typing import NamedTuple

LAYERS = 4  # each with K and V
DIM = 256  # bytes of a head for one token: 128 elements of 2 bytes
BYTES = 6 << 20  # that move, unless a case says otherwise: 24,576 runs of 256 bytes


class Cache(NamedTuple):
    """How a process has its heads: a tensor [layer, K and V, block, token, head, dim], or with heads before tokens."""

    axes: str  # "NHD", or "HND"
    block: int  # tokens
    heads: tuple[int, int]  # the first one, and how many

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes from one block, one token and one head to the next."""
        heads = self.heads[1]
        inner = (heads * DIM, DIM) if self.axes == "NHD" else (DIM, self.block * DIM)
        return (self.block * heads * DIM, *inner)

    def size(self, tokens: int) -> int:
        """Bytes of the tensor with blocks for so many tokens."""
        return LAYERS * 2 * tokens * self.heads[1] * DIM

    def places(self, tokens: int, heads: range) -> Iterator[int]:
        """Where each head of each token begins, in a fixed order."""
        block, token, head = self.strides
        part = tokens * self.heads[1] * DIM  # of K or of V of one layer
        tables = [place * block for place in self.table(tokens)]
        for start in range(0, LAYERS * 2 * part, part):
            for position in range(tokens):
                begin = start + tables[position // self.block] + position % self.block * token
                for number in heads:
                    yield begin + (number - self.heads[0]) * head

    def table(self, tokens: int) -> list[int]:
        """The blocks of a request that has all of them, in order."""
        blocks = list(range(tokens // self.block))
        random.Random(repr(self)).shuffle(blocks)
        return blocks

    def layout(self, address: int, tokens: int, model: int) -> str:
        """The text for kvferry.Layout.from_json. The tensor is at that address; the model has so many heads."""
        block, token, head = self.strides
        part = self.size(tokens) // LAYERS // 2
        tensor = {
            "layer": 0,
            "addresses": [address + layer * 2 * part for layer in range(LAYERS)],
            "kv": [0, 2],
            "dims": [0, DIM // 2],
            "strides": [part, block, token, head, 2],
        }
        return json.dumps(
            {
                "kvferry_layout": 1,
                "dtype": "float16",
                "element_size": 2,
                "blocks": tokens // self.block,
                "block_tokens": self.block,
                "layers": LAYERS,
                "kv": 2,
                "dim": DIM // 2,
                "heads": [*self.heads, model],
                "tensors": [tensor],
            }
        )


class Change(NamedTuple):
    """The heads that both caches have, of all tokens of a request."""

    run: int  # bytes that lie together on both sides
    source: Cache
    destination: Cache
    bytes: int = BYTES  # that move

    @property
    def heads(self) -> range:
        sides = (self.source.heads, self.destination.heads)
        return range(max(first for first, _ in sides), min(first + count for first, count in sides))

    @property
    def model(self) -> int:
        return max(first + count for first, count in (self.source.heads, self.destination.heads))

    @property
    def tokens(self) -> int:
        return self.bytes // (LAYERS * 2 * len(self.heads) * DIM)

    @property
    def span(self) -> int:
        """Bytes of the larger one of the caches."""
        return max(self.source.size(self.tokens), self.destination.size(self.tokens))

    def ranges(self) -> tuple[list[int], list[int]]:
        """Where each run begins at the source and at the destination, in the source's order."""
        pairs = sorted(
            zip(self.source.places(self.tokens, self.heads), self.destination.places(self.tokens, self.heads))
        )
        return [pair[0] for pair in pairs[:: self.run // DIM]], [pair[1] for pair in pairs[:: self.run // DIM]]


def halves(heads: int) -> Change:
    """The second one of two processes with so many heads each, to one that has all: both have blocks of 16 tokens."""
    return Change(heads * DIM, Cache("NHD", 16, (heads, heads)), Cache("NHD", 16, (0, 2 * heads)))


ALL = (0, 8)
CHANGES = {
    **{f"TP 2 to 1, NHD, {heads}": halves(heads) for heads in (1, 2, 4, 8)},
    "HND to NHD": Change(DIM, Cache("HND", 16, ALL), Cache("NHD", 16, ALL)),
    "blocks of 128 to 16, HND to NHD": Change(DIM, Cache("HND", 128, ALL), Cache("NHD", 16, ALL)),
    "blocks of 128 to 16": Change(16 * ALL[1] * DIM, Cache("NHD", 128, ALL), Cache("NHD", 16, ALL)),
}


@functools.lru_cache(maxsize=2)
def ranges(change: Change) -> tuple[list[int], list[int]]:
    """Change.ranges, kept for the next call."""
    return change.ranges()
