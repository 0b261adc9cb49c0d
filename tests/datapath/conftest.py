"""The data path: the axes along which its tests run, and the world in which something goes wrong on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath import combinations
from support import devices, hello
from support.devices import Release
from support.hello import Connect
from support.peers import Peers
from support.releases import newer, older, seed
from support.world import World

__all__ = ["newer", "older", "seed"]  # fixtures


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    combinations.parametrize(metafunc)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    combinations.leave_out(config, items, Path(__file__).parent)


@pytest.fixture(scope="module")
def memory(request: pytest.FixtureRequest) -> str:
    """Where the memory of the engine under test is."""
    return combinations.MEMORIES[request.param]


@pytest.fixture(scope="module")
def worlds(module_peers: Peers, memory: str) -> Iterator[list[World]]:
    """The world of the module's tests with this path and memory, and those that perished before it.

    In the end the engine must leave nothing on its devices.
    """
    made: list[World] = []
    yield made
    if memory != "host":
        for world in made:
            if not world.over:
                devices.end(world.engine)


@pytest.fixture
def world(module_peers: Peers, memory: str, worlds: list[World]) -> World:
    """An engine with its memory at `memory`, and a healthy peer: new ones where a failed test has ruined the last."""
    if not worlds or worlds[-1].over:
        worlds.append(World(module_peers, place=memory, **devices.needed(memory)))
    return worlds[-1]


@pytest.fixture
def connect(world: World, path: str) -> Connect:
    """Connect to the engine under test as an initiator does that uses the path."""
    return lambda: hello.connect(world.engine.name, path)


@pytest.fixture(scope="module", params=("newer", "older"))
def release(request: pytest.FixtureRequest, path: str) -> Release:
    """Both releases of the libraries of devices, one after the other."""
    found: Release = request.getfixturevalue(request.param)
    return found
