"""Engines that the tests of this folder share."""

from __future__ import annotations

import pytest

from mooncake.engine import TransferEngine
from support.inprocess import Node


@pytest.fixture
def fresh_engine() -> TransferEngine:
    """An engine that was not initialized."""
    return TransferEngine()


@pytest.fixture(scope="module")
def near() -> Node:
    """The engine that starts transfers; shared by the module's tests."""
    return Node()


@pytest.fixture(scope="module")
def far() -> Node:
    """The engine that they go to, by TCP although it is of this process."""
    return Node()
