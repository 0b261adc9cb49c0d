"""The world in which things go wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.peers import Peers
from support.world import World


@pytest.fixture(scope="module")
def worlds(module_peers: Peers) -> Iterator[list[World]]:
    """The module's world, and those that perished before it."""
    yield []


@pytest.fixture
def world(module_peers: Peers, worlds: list[World]) -> World:
    """The module's world: a new one where a test that failed has left the last one in ruins."""
    if not worlds or worlds[-1].over:
        worlds.append(World(module_peers))
    return worlds[-1]
