"""bench/ways.py, as far as every machine allows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import venvs

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def test_every_case_is_moved_by_calls_that_block_and_by_calls_that_do_not(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "0.01", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "bench/ways.py", *options], cwd=venvs.REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    for way in ("plain", "poll"):
        assert len([row for row in rows if row[1] == way]) == 8, done.stderr
    assert all(float(row[4]) > 0 for row in rows)  # system calls for a GB; a busy machine's rate rounds to 0
