"""What was acknowledged stays, also at a Mooncake target, which cannot be asked what it still has of former WRITEs."""

from __future__ import annotations

import pytest

from support.peers import Peers
from support.stale import FORMER, ROUNDS, Overtaking


@pytest.mark.parametrize("kind", ("0.3.12", "0.3.13"))
@pytest.mark.parametrize("same_host", ("0", "1"), ids=("tcp", "one-host"))
@pytest.mark.parametrize("size", FORMER)
def test_a_write_that_was_given_up_never_overwrites_one_that_was_acknowledged(
    start_peer: Peers, kind: str, same_host: str, size: int
) -> None:
    stage = Overtaking(start_peer, kind, same_host, size, whole=False)
    for _ in range(ROUNDS):
        stage.round()
