"""Some hundred rounds of the checker. It prints its seed: `python -m revocation --seed N` in the folder tests repeats
its choices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROUNDS = os.environ.get("KVFERRY_REVOCATION_ROUNDS", "400")
LIMIT = 600.0  # seconds


@pytest.mark.timeout(LIMIT + 60)
def test_no_byte_moves_by_an_offer_after_revoke_whatever_the_peer_does() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "revocation", "--rounds", ROUNDS],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout
