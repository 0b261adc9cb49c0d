"""What the tests of this folder share."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from support import npu, npus
from support.npus import Release
from support.venvs import REPOSITORY

BUILD_LIMIT = 120.0  # seconds

seeds = itertools.count(1)


@pytest.fixture
def seed() -> int:
    """A number that no other test has."""
    return next(seeds)


@pytest.fixture(scope="session")
def newer() -> Release:
    """The library that is there: the simulator, as it comes, or a real one."""
    return Release(npus.settings(), older=False)


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The simulator as an older release of CANN."""
    npus.need_simulator()
    path = tmp_path_factory.mktemp("older") / "libascendcl.so"
    command = [sys.executable, str(REPOSITORY / "scripts" / "build_library.py"), "npu", str(path)]
    environment = {**os.environ, "CGO_CFLAGS": "-O2 -DKVFERRY_SIM_OLDER_CANN"}
    subprocess.run(command, env=environment, check=True, timeout=BUILD_LIMIT)
    return Release(npus.settings(**{npus.VARIABLE: str(path), npu.VARIABLE: str(path)}), older=True)


@pytest.fixture(scope="module", params=("newer", "older"))
def release(request: pytest.FixtureRequest) -> Release:
    """Both of them, one after the other."""
    found: Release = request.getfixturevalue(request.param)
    return found
