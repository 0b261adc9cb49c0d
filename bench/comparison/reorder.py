"""What a receiver does whose engine changes no layout: it reads a cache as its sender has it into memory of its own,
and PyTorch puts heads and tokens where they belong, tensor by tensor, as vLLM's connector for NIXL does.

The destination's cache is at the beginning of the receiver's memory, and the copy of the sender's cache behind it.
"""

from __future__ import annotations

import importlib
import random
from typing import Any, NamedTuple

from comparison.case import KIB
from comparison.changes import DIM, LAYERS, Cache, Change

PIECE = 64 * KIB  # bytes that lie together, of the sender's cache, as the blocks of plain copies
ELEMENT = 2  # bytes


def span(change: Change) -> int:
    """Bytes of the memory that the receiver needs."""
    return behind(change) + change.source.size(change.tokens)


def behind(change: Change) -> int:
    """Where the copy of the sender's cache begins."""
    return change.destination.size(change.tokens)


def pieces(change: Change) -> list[int]:
    """Where the pieces of the sender's cache begin in it, in the random order in which they are read."""
    places = list(range(0, change.source.size(change.tokens), PIECE))
    random.Random(len(places)).shuffle(places)
    return places


class Exported(NamedTuple):
    """Memory of a GPU, for PyTorch."""

    address: int
    size: int  # bytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.size // ELEMENT,), "typestr": "<i2", "data": (self.address, False), "version": 3}


def missing() -> str:
    """Why there is no PyTorch with a GPU; "" where there is."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as e:
        return f"no PyTorch ({e})"
    return "" if torch.cuda.is_available() else "PyTorch finds no GPU"


class Reorder:
    """A call puts what was received into the cache, and returns when the GPU has done it."""

    def __init__(self, change: Change, address: int, place: str) -> None:
        """address is that of the memory, place its GPU's name."""
        self._torch, self._place = importlib.import_module("torch"), place
        self._torch.cuda.set_device(place)
        memory = self._torch.as_tensor(Exported(address, span(change)), device=place)
        if memory.data_ptr() != address:
            raise RuntimeError(f"PyTorch copied the memory at {address:#x}, and was to use it")
        self._views = views(memory, change)
        self._sources, self._destinations = (
            self._torch.tensor(cache.table(change.tokens), dtype=self._torch.int64, device=place)
            for cache in (change.source, change.destination)
        )
        self._swapped = change.source.axes != change.destination.axes

    def __call__(self) -> bool:
        reorder(*self._views, self._sources, self._destinations, self._swapped)
        self._torch.cuda.synchronize(self._place)
        return True


def views(memory: Any, change: Change) -> tuple[Any, Any]:
    """What is received, and the part of the cache it belongs to, of a tensor of elements: [K or V of a layer, block,
    token, head, dim], or with heads before tokens."""
    first = change.heads.start - change.destination.heads[0]
    received = view(memory, behind(change), change.source, change.tokens)
    cache = view(memory, 0, change.destination, change.tokens)
    return received, cache.narrow(3 if change.destination.axes == "NHD" else 2, first, len(change.heads))


def view(memory: Any, begin: int, cache: Cache, tokens: int) -> Any:
    """The tensor of a cache that begins so many bytes behind the memory's begin."""
    inner = (cache.block, cache.heads[1]) if cache.axes == "NHD" else (cache.heads[1], cache.block)
    elements = memory[begin // ELEMENT : (begin + cache.size(tokens)) // ELEMENT]
    return elements.view(LAYERS * 2, tokens // cache.block, *inner, DIM // ELEMENT)


def reorder(received: Any, cache: Any, sources: Any, destinations: Any, swapped: bool) -> None:
    """Put the blocks of a request, in the order of the tables of both sides, where they belong. swapped: tokens and
    heads are in the other order there."""
    for each, own in zip(received, cache):
        blocks = each.index_select(0, sources)
        if swapped:
            blocks = blocks.permute(0, 2, 1, 3)
        own.index_copy_(0, destinations, blocks.reshape(-1, *own.shape[1:]))
