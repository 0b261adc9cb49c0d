"""Pairs of engines that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.pairs import KINDS, SETTINGS, Pair, combinations, running
from support.peers import Peers

SIZE = (3 << 20) + 4099


@pytest.fixture(scope="module", params=combinations(KINDS, tuple(SETTINGS)))
def pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    """Every kind of peer in every setting."""
    yield from running(module_peers, request.param, SIZE)


@pytest.fixture(scope="module", params=combinations(KINDS, ("default", "v1")))
def framed_pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    """Every kind of peer in both framings."""
    yield from running(module_peers, request.param, SIZE)


@pytest.fixture(scope="module", params=combinations(KINDS, ("default",)))
def plain_pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    """Every kind of peer as it comes."""
    yield from running(module_peers, request.param, SIZE)
