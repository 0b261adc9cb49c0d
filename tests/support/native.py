"""Engines of the native package, in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kvferry import Engine, Peer, Region

SIZE = 1 << 20
NOWHERE = 1 << 46  # an address at which no test has memory


class Couple:
    """Two engines of this process. near starts transfers, far has registered an array of bytes."""

    def __init__(self, size: int = SIZE, **arguments: Any) -> None:
        self.near, self.far = Engine(**arguments), Engine(**arguments)
        self.memory = np.zeros(size, np.uint8)
        self.region: Region = self.far.register(self.memory)
        self.peer: Peer = self.near.open(self.far.name)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@contextmanager
def couple(size: int = SIZE, **arguments: Any) -> Iterator[Couple]:
    made = Couple(size, **arguments)
    try:
        yield made
    finally:
        made.close()


def some_bytes(size: int = SIZE, seed: int = 1) -> Any:
    """An array of random bytes."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)
