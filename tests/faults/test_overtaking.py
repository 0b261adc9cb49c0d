"""What was acknowledged stays: bytes of a WRITE that was given up never land after those of a later one."""

from __future__ import annotations

import pytest

from support.peers import Peers
from support.stale import FORMER, ROUNDS, Overtaking

ours = pytest.mark.parametrize("same_host", ("0", "1"), ids=("tcp", "one-host"))


@ours
@pytest.mark.parametrize("size", FORMER)
@pytest.mark.parametrize("whole", (True, False), ids=("whole", "part"))
def test_a_write_that_was_given_up_never_overwrites_one_that_was_acknowledged(
    start_peer: Peers, same_host: str, size: int, whole: bool
) -> None:
    stage = Overtaking(start_peer, "ours", same_host, size, whole)
    for _ in range(ROUNDS):
        stage.round()
