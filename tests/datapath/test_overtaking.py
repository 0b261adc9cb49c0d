"""What was acknowledged stays: bytes of a WRITE that was given up never land after those of a later one.

A Mooncake target cannot be asked what it still has of former WRITEs.
"""

from __future__ import annotations

import pytest

from support.peers import Peers
from support.stale import FORMER, ROUNDS, Overtaking


@pytest.mark.parametrize("kind", ("ours", "0.3.12", "0.3.13"))
@pytest.mark.parametrize("size", FORMER)
@pytest.mark.parametrize("whole", (True, False), ids=("whole", "part"))
def test_a_write_that_was_given_up_never_overwrites_one_that_was_acknowledged(
    start_peer: Peers, memory: str, kind: str, size: int, whole: bool
) -> None:
    stage = Overtaking(start_peer, kind, memory, size, whole)
    for _ in range(ROUNDS):
        stage.round()
