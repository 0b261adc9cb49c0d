"""GPU memory on a machine that has a GPU, real or simulated: what the tests of this folder share.

Where there is no GPU they are skipped, in CI, too, whose machines have none: what can be tested there is tested with
simulated devices in tests/datapath and tests/heterogeneous. `make test-gpu` runs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.machine import GPUS, WHY_NOT

_seeds = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if GPUS == 0:
        skip = pytest.mark.skip(reason=f"no GPU here, which is no failure, in CI neither: {WHY_NOT}")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


@pytest.fixture
def seeds() -> Iterator[int]:
    """Numbers that nobody had before."""
    return _seeds
