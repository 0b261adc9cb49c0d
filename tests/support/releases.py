"""Fixtures: the libraries of devices as they come, and as older releases have them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import devices, runtimes
from .devices import Release
from .venvs import REPOSITORY

BUILD_LIMIT = 120.0  # seconds

_seeds = itertools.count(1)


@pytest.fixture
def seed() -> int:
    """A number that no other test of this process has."""
    return next(_seeds)


@pytest.fixture(scope="session")
def newer() -> Release:
    """The libraries that are there: the simulators, as they come, or real ones."""
    return Release(devices.settings(), older=False)


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The simulators as older releases of CANN and of CUDA's driver."""
    folder, found = tmp_path_factory.mktemp("older"), devices.settings()
    for kind, variable in devices.VARIABLES.items():
        devices.need_simulator(kind)
        path = folder / Path(found[variable]).name
        command = [sys.executable, str(REPOSITORY / "scripts" / "build_library.py"), kind, str(path)]
        environment = {**os.environ, "CGO_CFLAGS": "-O2 -DKVFERRY_SIM_OLDER_CANN -DKVFERRY_SIM_OLDER_CUDA"}
        subprocess.run(command, env=environment, check=True, timeout=BUILD_LIMIT)
        found.update({variable: str(path), runtimes.VARIABLES[kind]: str(path)})
    return Release(found, older=True)
