"""What the owner of memory lets peers do with it binds Mooncake's engines, which do not know of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.memory import addresses, transfer
from support.pairs import V1_ONLY
from support.peer import Peer
from support.peers import Peers
from support.venvs import VERSIONS
from support.world import QUICK

SIZE = (1 << 20) + 77
SPAN = (3, 5, SIZE - 9)

opcodes = pytest.mark.parametrize("opcode", ("read", "write"))


@pytest.fixture(scope="module")
def ours(module_peers: Peers) -> Peer:
    return module_peers(**QUICK).create()


@pytest.fixture(scope="module", params=VERSIONS)
def theirs(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Peer]:
    peer = module_peers(request.param).create()
    yield peer
    peer.kill()


@pytest.fixture
def acknowledged(request: pytest.FixtureRequest) -> bool:
    """Whether Mooncake learns what becomes of a WRITE."""
    return request.node.callspec.params["theirs"] not in V1_ONLY


@opcodes
def test_mooncake_is_refused_what_the_owner_does_not_allow_and_nothing_changes(
    ours: Peer, theirs: Peer, opcode: str, acknowledged: bool
) -> None:
    near, far = theirs.memory(SIZE, 1), ours.memory(SIZE, 2, register=False)
    other = "write" if opcode == "read" else "read"
    assert ours.call("register_memory", far.address, far.size, access=other) == 0
    code = theirs.move(ours.name, opcode, addresses(near, far, [SPAN]))["code"]
    assert code != 0 or (opcode == "write" and not acknowledged)
    near.check()
    far.check()
    transfer(near, far, other, [SPAN])
    near.check()
    far.check_soon()
    assert ours.call("unregister_memory", far.address) == 0
    assert theirs.call("unregister_memory", near.address) == 0
