"""Under TLS, too, a transfer of memory whose pages do not come ends, says what is still used, and holds up no other."""

from __future__ import annotations

import re

import pytest

from support import absent
from support.peers import Peers, unavailable
from support.world import HUNG, QUICK

SIZE = 64 << 10  # long enough for the cipher to work on the memory itself
IN_USE = -4


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_transfer_of_memory_whose_pages_do_not_come_returns_and_says_so(
    start_peer: Peers, secret: str, operation: str
) -> None:
    if not absent.allowed():
        unavailable("userfaultfd, which makes pages that do not come, takes root or vm.unprivileged_userfaultfd=1")
    engine = start_peer(**QUICK, KVFERRY_SECRET_FILE=secret).create()
    target = start_peer(KVFERRY_SECRET_FILE=secret).create()
    stuck = engine.memory(SIZE, place="absent", location="cpu:0")
    near, far = engine.memory(SIZE, 1), target.memory(SIZE)
    moving = engine.start_move(target.name, operation, [[stuck.address, far.address, SIZE]], "sync")
    engine.ask("wait_for_touch", region=stuck.region)
    assert moving.result(HUNG)["code"] < 0
    assert engine.logs_match(rf"may still use their memory.*{re.escape(target.name)}.*{stuck.address:#x}\+{SIZE}")
    assert engine.call("unregister_memory", stuck.address, limit=HUNG) == IN_USE
    assert engine.move(target.name, "write", [[near.address, far.address, SIZE]])["code"] == 0

    engine.ask("come", region=stuck.region)
    assert engine.call("unregister_memory", stuck.address, limit=HUNG) == 0
