"""A minute of the checker, or some on a slow machine. It prints its seed: `python -m ownership --seed N` in the folder
tests repeats it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ownership.driver import PATIENCE

TESTS = Path(__file__).parents[1]
SECONDS = os.environ.get("KVFERRY_OWNERSHIP_SECONDS", "60")
MORE = os.environ.get("KVFERRY_OWNERSHIP_ARGUMENTS", "").split()
LIMIT = float(SECONDS) * PATIENCE + 240.0  # seconds: engines start and end


@pytest.mark.timeout(LIMIT + 60)
def test_nobody_touches_memory_that_is_not_theirs_whatever_goes_wrong() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ownership", "--seconds", SECONDS, *MORE],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout
