"""Engines that find each other by Mooncake's HTTP metadata server or etcd: ours, and two versions of Mooncake.

Mooncake's wheels come without Redis, so by Redis ours find each other alone.
"""

from __future__ import annotations

import functools
import itertools
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from support import ports, process, venvs
from support.ids import shown
from support.memory import Memory
from support.pairs import DIRECTIONS, Pair
from support.peer import Peer, environment
from support.peers import Peers, unavailable
from support.spans import scattered
from support.stores import EtcdServer, MooncakeServer, RedisServer, Server

SERVERS = ("0.3.12", "0.3.13")
KINDS = ("0.3.12", "0.3.13", "ours")
HERE = {"MC_TCP_BIND_ADDRESS": "127.0.0.1"}
SIZE = 1 << 20
SPANS = scattered([1, 4096, 70001, 300000])

numbers = itertools.count(1)
seeds = itertools.count(5000)
kinds = pytest.mark.parametrize("kind", KINDS)
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def running(kind: str, folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """The body of a fixture that runs a server: "etcd", or Mooncake's of a version."""
    try:
        store = EtcdServer(folder) if kind == "etcd" else MooncakeServer(kind, folder / "metadata.log", host)
    except venvs.Unavailable as reason:
        unavailable(str(reason))
    yield store
    store.kill()


@pytest.fixture(scope="module", params=(*SERVERS, "etcd"))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of each kind: engines that share it have different names."""
    yield from running(request.param, tmp_path_factory.mktemp("server"))


@pytest.fixture(params=(SERVERS[-1], "etcd"))
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may end."""
    yield from running(request.param, tmp_path)


@pytest.fixture(params=SERVERS)
def own_mooncake_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    yield from running(request.param, tmp_path)


def unused(host: str = "node") -> str:
    """Return a name that no engine has had."""
    return f"{host}-{next(numbers)}"


def join(peers: Peers, kind: str, store: Server, name: str, **settings: str) -> Peer:
    """Start an engine that peers find under a name in the store."""
    peer = peers(kind, **{**HERE, **settings})
    assert peer.try_create(name, store.address) == 0
    peer.name = name
    return peer


def paired(peers: Peers, kind: str, store: Server, names: tuple[str, str], **settings: str) -> Pair:
    ours = join(peers, "ours", store, names[0], **settings)
    theirs = join(peers, kind, store, names[1], **settings)
    return Pair(kind, "default", ours.memory(SIZE, 1), theirs.memory(SIZE, 2))


def check_moves(pair: Pair, *directions_: str) -> None:
    """READ and WRITE with these initiators, byte for byte."""
    for direction, opcode in itertools.product(directions_ or DIRECTIONS, ("write", "read")):
        pair.fill(next(seeds))
        pair.transfer(direction, opcode, "batch", SPANS)


def segment_of(store: Server, name: str, cluster: str = "") -> Optional[Any]:
    return store.get(f"mooncake/{cluster}ram/{name}")


def address_of(store: Server, name: str, cluster: str = "") -> Optional[Any]:
    return store.get(f"mooncake/{cluster}rpc_meta/{name}")


def check_gone(store: Server, name: str) -> None:
    assert address_of(store, name) is None
    assert segment_of(store, name) is None


@pytest.fixture(scope="module", params=(*KINDS, venvs.FOR_CUDA))
def pair(request: pytest.FixtureRequest, module_peers: Peers, server: Server) -> Iterator[Pair]:
    """Two engines with names that are no addresses, one with a port."""
    made = paired(module_peers, request.param, server, (unused(), f"{unused()}:17123"))
    yield made
    made.ours.peer.kill()
    made.theirs.peer.kill()


@directions
def test_peers_that_find_each_other_by_name_move_bytes(pair: Pair, direction: str) -> None:
    check_moves(pair, direction)


@directions
def test_peers_that_find_each_other_by_name_send_messages_and_probes(pair: Pair, direction: str) -> None:
    local, remote = pair.sides(direction)
    block = [[local.address, remote.address, 100]]
    assert local.peer.move(remote.peer.name, "read", block, "sync_opcode", notify=("request", "done"))["code"] == 0
    assert remote.peer.ask("notifies", engine="main") == [["request", "done"]]
    assert local.peer.call("send_probe", remote.peer.name) == 0
    first = local.peer.call("get_first_buffer_address", remote.peer.name)
    assert first in (remote.address, remote.address + remote.size)


@kinds
def test_mooncake_reads_the_signed_entries_of_an_engine_that_prefers_security(
    start_peer: Peers, server: Server, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_text(secrets.token_hex(32) + "\n")
    settings = {"KVFERRY_SECRET_FILE": str(file), "KVFERRY_SECURITY": "prefer"}
    pair = paired(start_peer, kind, server, (unused(), unused()), **settings)
    check_moves(pair)
    for direction in DIRECTIONS:
        local, remote = pair.sides(direction)
        block = [[local.address, remote.address, 100]]
        assert local.peer.move(remote.peer.name, "read", block, "sync_opcode", notify=("a", "b"))["code"] == 0
        assert remote.peer.ask("notifies", engine="main") == [["a", "b"]]
    for entry in (segment_of(server, pair.ours.peer.name), address_of(server, pair.ours.peer.name)):
        assert entry is not None
        assert "kvferry_signature" in entry


@kinds
@pytest.mark.parametrize("cluster", ("blue", "blue/"))
def test_engines_of_one_cluster_find_each_other_and_nobody_else_does(
    start_peer: Peers, server: Server, kind: str, cluster: str
) -> None:
    names = (unused(), unused())
    pair = paired(start_peer, kind, server, names, MC_METADATA_CLUSTER_ID=cluster)
    check_moves(pair)
    for name in names:
        assert segment_of(server, name, "blue/") is not None
        assert segment_of(server, name) is None
    outside = join(start_peer, "ours", server, unused())
    near = outside.memory(SIZE)
    assert outside.move(names[1], "read", [[near.address, pair.theirs.address, 8]])["code"] < 0
    assert outside.logs(server.address)


@kinds
def test_peers_are_found_at_ipv6_addresses(start_peer: Peers, tmp_path: Path, kind: str) -> None:
    for store in running(SERVERS[-1], tmp_path, "::1"):
        settings = {"MC_USE_IPV6": "1", "MC_TCP_BIND_ADDRESS": "::1"}
        pair = paired(start_peer, kind, store, ("node-a", "node-b"), **settings)
        address = address_of(store, "node-a")
        assert address is not None
        assert address["ip_or_host_name"] == "::1"
        check_moves(pair)


@kinds
def test_the_port_of_a_name_is_bound_where_that_is_wanted(start_peer: Peers, server: Server, kind: str) -> None:
    held = ports.hold_range(2)
    names = [f"127.0.0.1:{ports.port_of(s)}" for s in held]
    for s in held:
        s.close()
    pair = paired(start_peer, kind, server, (names[0], names[1]), MC_LEGACY_RPC_PORT_BINDING="1")
    for peer in (pair.ours.peer, pair.theirs.peer):
        assert peer.name == f"127.0.0.1:{peer.call('get_rpc_port')}"
    check_moves(pair)


@kinds
def test_a_clean_exit_leaves_nothing_and_a_killed_engine_is_replaced_by_its_successor(
    start_peer: Peers, server: Server, kind: str
) -> None:
    name, dead = unused(), join(start_peer, kind, server, unused())
    killed = dead.name
    dead.memory(SIZE)
    dead.kill()
    assert address_of(server, killed) is not None

    pair = paired(start_peer, kind, server, (killed, name))
    segment = segment_of(server, killed)
    assert segment is not None
    assert [b["addr"] for b in segment["buffers"]] == [pair.ours.address]
    check_moves(pair)
    assert pair.ours.peer.close() == 0
    check_gone(server, killed)


def test_a_peer_that_was_restarted_under_its_name_is_found_again(start_peer: Peers, server: Server) -> None:
    name, near = unused(), join(start_peer, "ours", server, unused()).memory(SIZE, 1)
    for _ in range(3):
        far = join(start_peer, "ours", server, name).memory(SIZE, 2)
        for opcode in ("write", "read"):
            assert near.peer.move(name, opcode, [[near.address, far.address, 70001]])["code"] == 0
        far.peer.kill()


def reached(near: Memory, far: Memory, name: str) -> bool:
    """Whether a WRITE to the engine of that name arrives."""
    return bool(near.peer.move(name, "write", [[near.address, far.address, 70001]])["code"] == 0)


def test_mooncake_finds_a_restarted_peer_of_ours_again_where_it_refreshes_what_it_knows(
    start_peer: Peers, server: Server
) -> None:
    """It takes the successor's entries for later ones. Without the setting it does not look at them."""
    refreshing = {"MC_TE_METADATA_REFRESH_INTERVAL_SECONDS": "1"}
    near = join(start_peer, venvs.FOR_CUDA, server, unused(), **refreshing).memory(SIZE, 1)
    name = unused()
    versions = [0]
    for _ in range(2):
        far = join(start_peer, "ours", server, name).memory(SIZE, 2)
        entries = address_of(server, name), segment_of(server, name)
        versions += [entry["metadata_version"] for entry in entries if entry]
        process.until(functools.partial(reached, near, far, name), 30, "the engine of that name is reached")
        far.peer.kill()
    assert len(versions) == 5
    assert versions == sorted(versions)


@kinds
def test_a_live_namesake_is_an_error_and_loses_nothing(start_peer: Peers, server: Server, kind: str) -> None:
    pair = paired(start_peer, kind, server, (unused(), unused()))
    name = pair.theirs.peer.name
    before = address_of(server, name), segment_of(server, name)
    second = start_peer("ours", **HERE)
    assert second.try_create(name, server.address) != 0
    assert second.logs(f'the name "{name}" is taken')
    assert second.logs(f"127.0.0.1:{pair.theirs.peer.call('get_rpc_port')}")
    assert second.close() == 0
    assert (address_of(server, name), segment_of(server, name)) == before
    check_moves(pair)


def test_mooncake_is_refused_our_name(start_peer: Peers, own_mooncake_server: Server) -> None:
    """Its failure takes our address along, which we write again."""
    ours = join(start_peer, "ours", own_mooncake_server, unused(), KVFERRY_METADATA_KEEP_SECONDS="1")
    before = address_of(own_mooncake_server, ours.name)
    theirs = start_peer("0.3.13", **HERE)
    assert theirs.try_create(ours.name, own_mooncake_server.address) != 0
    theirs.close()
    process.until(lambda: address_of(own_mooncake_server, ours.name) == before, 20, "the address is there again")
    assert segment_of(own_mooncake_server, ours.name) is not None


@kinds
def test_while_the_server_is_away_known_peers_are_reached_and_new_ones_are_again_when_it_is_back(
    start_peer: Peers, own_server: Server, kind: str
) -> None:
    keep = {"KVFERRY_METADATA_KEEP_SECONDS": "1"}
    pair = paired(start_peer, kind, own_server, ("node-a", "node-b"), **keep)
    third = join(start_peer, "ours", own_server, "node-c", **keep).memory(SIZE, 3)
    check_moves(pair)

    own_server.kill()
    check_moves(pair)
    ours = pair.ours.peer
    block = [[pair.ours.address, third.address, 4096]]
    failed = ours.move("node-c", "write", block, limit=20)
    assert failed["code"] < 0
    assert ours.logs(own_server.address)
    check_moves(pair)

    own_server.start()
    process.until(lambda: segment_of(own_server, "node-c") is not None, 20, "what it has lost is written again")
    assert ours.move("node-c", "write", block)["code"] == 0
    check_moves(pair)


GRACEFUL = """
import signal, sys
from kvferry._library import load
functions = load()
engine = functions.createTransferEngine(sys.argv[1].encode(), sys.argv[2].encode(), b"", 0, 1)
functions.enableGracefulShutdown(engine)
print("ready", flush=True)
while True:
    signal.pause()  # which the library's handler ends: the program goes on until the signal comes again
"""


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_after_graceful_shutdown_leaves_nothing(server: Server, number: int) -> None:
    name = unused()
    command = [sys.executable, "-c", GRACEFUL, server.address, name]
    env = environment({**venvs.ours(), **HERE}, ours=True)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "ready\n"
        assert segment_of(server, name) is not None
        engine.send_signal(number)
        engine.wait(20)
    check_gone(server, name)


@pytest.mark.parametrize("garbage", (b"", b"null", b'{"protocol": 1}', b"\xff" * 1000), ids=shown)
def test_garbage_under_a_key_is_an_error_that_names_it(start_peer: Peers, server: Server, garbage: bytes) -> None:
    name = unused()
    for kind in ("ram", "rpc_meta"):
        server.put(f"mooncake/{kind}/{name}", garbage)
    near = join(start_peer, "ours", server, unused()).memory(SIZE)
    assert near.peer.move(name, "read", [[near.address, 4096, 8]])["code"] < 0
    assert near.peer.logs(f"mooncake/ram/{name}")
    namesake = start_peer("ours", **HERE)
    assert namesake.try_create(name, server.address) != 0
    assert namesake.logs(f"mooncake/rpc_meta/{name}")


def test_a_server_that_is_not_there_is_an_error_that_names_it(start_peer: Peers, own_server: Server) -> None:
    own_server.kill()
    peer = start_peer("ours", **HERE)
    assert peer.try_create("node-a", own_server.address) != 0
    assert peer.logs(own_server.address)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    try:
        store = RedisServer(tmp_path)
    except venvs.Unavailable as reason:
        unavailable(str(reason))
    yield store
    store.kill()


def test_ours_find_each_other_in_a_database_of_redis(start_peer: Peers, redis: RedisServer) -> None:
    entry = {"MC_REDIS_PASSWORD": RedisServer.PASSWORD, "MC_REDIS_USERNAME": "default", "MC_REDIS_DB_INDEX": "3"}
    pair = paired(start_peer, "ours", redis, ("node-a", "node-b"), **entry)
    check_moves(pair)
    outside = join(start_peer, "ours", redis, "node-a", **{**entry, "MC_REDIS_DB_INDEX": "4"})
    near = outside.memory(SIZE)
    assert outside.move("node-b", "read", [[near.address, pair.theirs.address, 8]])["code"] < 0
    assert outside.logs(redis.address)


@pytest.mark.parametrize("password", ("", "a wrong one"))
def test_a_wrong_password_for_redis_is_an_error_that_does_not_show_it(
    start_peer: Peers, redis: RedisServer, password: str
) -> None:
    peer = start_peer("ours", **HERE, MC_REDIS_PASSWORD=password)
    assert peer.try_create("node-a", redis.address) != 0
    assert peer.logs(redis.address)
    assert not password or password not in peer.log()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Server]:
    yield from running("etcd", tmp_path)


def test_a_killed_engine_of_ours_disappears_from_etcd_with_its_lease(start_peer: Peers, etcd: Server) -> None:
    killed = join(start_peer, "ours", etcd, "node-a", KVFERRY_ETCD_LEASE_SECONDS="2")
    kept = join(start_peer, "ours", etcd, "node-b", KVFERRY_ETCD_LEASE_SECONDS="0")
    assert address_of(etcd, "node-a") is not None
    killed.kill()
    kept.kill()
    process.until(lambda: address_of(etcd, "node-a") is None, 20, "the address disappears")
    process.until(lambda: segment_of(etcd, "node-a") is None, 20, "the segment disappears")
    assert address_of(etcd, "node-b") is not None
