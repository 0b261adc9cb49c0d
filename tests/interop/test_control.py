"""What peers tell each other beside payload: notifications, probes, buffers; and the names they find each other by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from support import wire
from support.pairs import DIRECTIONS, KINDS, Pair, combinations, running
from support.peers import Peers
from support.spans import scattered

NO_PROBE = ("0.3.8",)
MESSAGES = [("request-1", "done"), ("", "empty name"), ("ключ", '値 "quoted" \\ \n\t'), ("long", "x" * 100_000)]

seeds = itertools.count(1000)
directions = pytest.mark.parametrize("direction", DIRECTIONS)


@directions
@pytest.mark.parametrize("message", MESSAGES, ids=("plain", "unnamed", "unicode", "long"))
def test_a_notification_arrives_once_after_the_bytes(
    plain_pair: Pair, direction: str, message: tuple[str, str]
) -> None:
    plain_pair.fill(next(seeds))
    local, remote = plain_pair.sides(direction)
    moved = local.peer.move(
        remote.peer.name, "write", [[local.address, remote.address, 5000]], "sync_opcode", notify=message
    )
    assert moved["code"] == 0
    assert remote.peer.ask("notifies", engine="main") == [list(message)]
    remote.model[:5000] = local.model[:5000]
    remote.check_soon() if plain_pair.they_report_early() else remote.check()


@directions
def test_notifications_of_many_transfers_keep_their_order(plain_pair: Pair, direction: str) -> None:
    local, remote = plain_pair.sides(direction)
    sent = [["block", str(i)] for i in range(20)]
    for message in sent:
        block = [[local.address, remote.address, 100]]
        assert local.peer.move(remote.peer.name, "read", block, "sync_opcode", notify=message)["code"] == 0
    assert remote.peer.ask("notifies", engine="main") == sent
    assert remote.peer.ask("notifies", engine="main") == []


def test_a_probe_finds_a_peer_that_is_alive(plain_pair: Pair) -> None:
    """0.3.8 closes without an answer, which is no evidence of death, and cannot probe itself."""
    ours, theirs = plain_pair.ours.peer, plain_pair.theirs.peer
    assert ours.call("send_probe", theirs.name) == 0
    if plain_pair.kind not in NO_PROBE:
        assert theirs.call("send_probe", ours.name) == 0


@directions
def test_the_first_buffer_of_a_peer_is_found(plain_pair: Pair, direction: str) -> None:
    local, remote = plain_pair.sides(direction)
    first = wire.descriptor(remote.peer.name)["buffers"][0]["addr"]
    assert local.peer.call("get_first_buffer_address", remote.peer.name) == first


@pytest.fixture(scope="module", params=combinations(KINDS, ("default", "v1")))
def ipv6_pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    yield from running(module_peers, request.param, 1 << 20, "[::1]", MC_USE_IPV6="1")


@pytest.fixture(scope="module", params=combinations(KINDS, ("default",)))
def bare_ipv6_pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    yield from running(module_peers, request.param, 1 << 20, "::1", MC_USE_IPV6="1")


@pytest.fixture(scope="module", params=combinations(KINDS, ("default", "v1")))
def named_pair(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    yield from running(module_peers, request.param, 1 << 20, "localhost")


@directions
@pytest.mark.parametrize("opcode", ("read", "write"))
def test_peers_find_each_other_by_ipv6_addresses(ipv6_pair: Pair, direction: str, opcode: str) -> None:
    move(ipv6_pair, direction, opcode)


@directions
@pytest.mark.parametrize("opcode", ("read", "write"))
def test_peers_find_each_other_by_ipv6_addresses_without_brackets(
    bare_ipv6_pair: Pair, direction: str, opcode: str
) -> None:
    move(bare_ipv6_pair, direction, opcode)


@directions
@pytest.mark.parametrize("opcode", ("read", "write"))
def test_peers_find_each_other_by_host_names(named_pair: Pair, direction: str, opcode: str) -> None:
    move(named_pair, direction, opcode)


def move(pair: Pair, direction: str, opcode: str) -> None:
    pair.fill(next(seeds))
    pair.transfer(direction, opcode, "batch", scattered([1, 4096, 70001, 300000]))
