"""A KV cache in host or device memory: its shape, its bytes, and digests of them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from typing import Callable, NamedTuple

from kvferry import _places
from kvferry._places import Placed, PlaceError, size_text
from kvferry.demo.devices import DemoError

STEP = 1 << 20  # bytes that a cache is filled with at once

Table = list[int]  # the slot of each block of a sequence, the same in every layer's K and V


class Shape(NamedTuple):
    """A KV cache: for each layer K and V, each with that number of blocks."""

    layers: int
    blocks: int
    block_size: int  # bytes

    @property
    def bytes(self) -> int:
        """The size of the whole cache."""
        return self.layers * 2 * self.blocks * self.block_size

    def offsets(self, layer: int, table: Table) -> Iterator[int]:
        """The offsets of a layer's blocks in the cache: K's and then V's, in the order of the sequence."""
        for half in (layer * 2, layer * 2 + 1):
            for slot in table:
                yield (half * self.blocks + slot) * self.block_size

    def __str__(self) -> str:
        return f"{self.layers} layers x K and V x {self.blocks} blocks of {size_text(self.block_size)}"


def allocate(place: str, size: int) -> Placed:
    """Memory in a place for a cache: "host", or a device as "npu:0" or "cuda:0"."""
    try:
        return _places.allocate(place, size)
    except PlaceError as e:
        raise DemoError(str(e)) from e


class Cache:
    """Memory in the shape of a KV cache, with its blocks in random slots."""

    def __init__(self, shape: Shape, place: str) -> None:
        self.shape = shape
        self.table: Table = random.sample(range(shape.blocks), shape.blocks)
        self.memory = allocate(place, shape.bytes)

    def fill(self) -> None:
        """Fill it with random bytes."""
        self._write(os.urandom)

    def wipe(self) -> None:
        """Fill it with zeros."""
        self._write(bytes)

    def _write(self, data: Callable[[int], bytes]) -> None:
        for start in range(0, self.shape.bytes, STEP):
            self.memory.write(data(min(STEP, self.shape.bytes - start)), start)

    def digests(self) -> list[bytes]:
        """One digest of each layer: of its blocks in the order of the sequence, whatever their slots are."""
        return [self._digest(layer) for layer in range(self.shape.layers)]

    def _digest(self, layer: int) -> bytes:
        size = self.shape.bytes // self.shape.layers
        contents = self.in_order(bytes(self.memory.read(size, layer * size)))
        return hashlib.blake2b(b"".join(contents), digest_size=16).digest()

    def in_order(self, layer: bytes) -> list[bytes]:
        """The blocks of a layer in the order of the sequence, K's and then V's."""
        size = self.shape.block_size
        return [layer[start : start + size] for start in self.shape.offsets(0, self.table)]


def compare(sent: list[bytes], arrived: list[bytes], who: str) -> None:
    """DemoError names the layers whose digests differ. who is the side that has them, and a verb."""
    wrong = [str(layer) for layer, (a, b) in enumerate(zip(sent, arrived)) if a != b]
    if wrong or len(sent) != len(arrived):
        raise DemoError(f"the bytes that {who} differ from those that prefill sent, in layers {', '.join(wrong)}")
