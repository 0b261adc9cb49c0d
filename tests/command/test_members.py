"""kvferry ls and kvferry rm, on stores of every kind."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_uint64, create_string_buffer
from pathlib import Path
from typing import Any

import pytest

from kvferry._calls import background_call
from kvferry._command.texts import memory_text
from kvferry._ffi import last_error
from kvferry._library import load
from support import venvs
from support.commands import result, run, running
from support.commands import serving as served
from support.inprocess import Node, environment
from support.peers import Peers, unavailable
from support.stores import EtcdServer, MooncakeServer, RedisServer

PASSWORD = {"MC_REDIS_PASSWORD": RedisServer.PASSWORD, "KVFERRY_ETCD_LEASE_SECONDS": "0"}


@contextmanager
def store_of(kind: str, folder: Path) -> Iterator[str]:
    """A store of that kind: its connection string."""
    if kind == "http":
        with running("metadata-server", "--host", "127.0.0.1", "--port", "0") as server:
            yield server.line("^(http://.*)$")[1]
        return
    try:
        made = EtcdServer(folder) if kind == "etcd" else RedisServer(folder)
    except venvs.Unavailable as e:
        unavailable(str(e))
    try:
        yield made.address
    finally:
        made.kill()


@pytest.fixture(params=("etcd", "redis", "http"))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with store_of(request.param, tmp_path) as address:
        yield address


def listed(store: str, *arguments: str, **settings: str) -> dict[str, Any]:
    """What `kvferry ls --json` says, by name."""
    return {member["name"]: member for member in result("ls", store, *arguments, **{**PASSWORD, **settings})}


@contextmanager
def engine_in(store: str, name: str, **settings: str) -> Iterator[Any]:
    """A process with an engine of that name, which offers 1 MiB and a page, and writes its entries once."""
    arguments = "-v", "serve", "--metadata", store, "--name", name, "--size", "1M"
    own = {"MC_TCP_BIND_ADDRESS": "127.0.0.1", "KVFERRY_METADATA_KEEP_SECONDS": "0"}
    with running(*arguments, **{**PASSWORD, **own, **settings}) as made:
        made.line(f"^kvferry bench {name} --metadata")
        yield made


def test_the_living_and_the_dead_are_told_apart_and_the_dead_are_removed(store: str) -> None:
    assert listed(store) == {}
    with engine_in(store, "lives"), engine_in(store, "killed") as killed:
        killed.process.kill()
        killed.process.wait(60)
        found = listed(store)
        assert {name: (member["state"], member["kind"]) for name, member in found.items()} == {
            "lives": ("reachable", "kvferry"),
            "killed": ("stale", "kvferry"),
        }
        assert found["lives"]["bytes"] == (1 << 20) + 4096 and found["lives"]["buffers"] == 1
        assert found["lives"]["address"].startswith("127.0.0.1:")
        assert set(listed(store, "--stale")) == {"killed"}

        status, out, _ = run("-v", "ls", store, **PASSWORD)
        assert status == 0
        lines = out.splitlines()
        assert lines[0].split() == ["NAME", "STATE", "KIND", "ADDRESS", "SINCE", "BUFFERS", "MEMORY"]
        assert lines[1].split()[:3] == ["killed", "stale", "kvferry"] and lines[1].endswith("1  1.0 MiB")
        assert lines[3].startswith("killed: probe request to peer 127.0.0.1:")
        assert run("ls", store, "lives", "killed", **PASSWORD)[0] == 1
        assert run("ls", store, "lives", **PASSWORD)[0] == 0

        status, _, err = run("rm", store, "lives", "--yes", **PASSWORD)
        assert status == 1 and "engine 'lives' lives; with --force" in err
        status, _, err = run("rm", store, "killed", **PASSWORD)
        assert status == 1 and "standard input is no terminal; --yes answers" in err
        assert set(listed(store)) == {"lives", "killed"}
        assert run("rm", store, "killed", "--yes", **PASSWORD)[0] == 0
        status, _, err = run("rm", store, "killed", "--yes", **PASSWORD)
        assert status == 1 and "the store knows no engine 'killed'" in err and store not in err
        assert set(listed(store)) == {"lives"}
        assert run("bench", "lives", "--metadata", store, "--seconds", "0.01", "--size", "4K", **PASSWORD)[0] == 0
        assert run("rm", store, "lives", "--yes", "--force", **PASSWORD)[0] == 0
        assert "lives" not in listed(store)


def test_the_doctor_examines_the_way_to_an_engine_in_a_store(store: str) -> None:
    way = "--metadata", store, "--seconds", "0.01"
    with engine_in(store, "node"):
        for name in ((), ("--name", "examiner")):
            status, out, err = run("-v", "doctor", "node", *way, *name, **PASSWORD)
            assert status == 0 and out.count("limit: ") + out.count(" rate: ") >= 2, (out, err)
        status, out, _ = run("doctor", "nobody", *way, **PASSWORD)
        assert status == 1 and "Look at what kvferry ls STORE nobody says" in " ".join(out.split())


def test_clusters_are_apart(store: str) -> None:
    with engine_in(store, "blue", MC_METADATA_CLUSTER_ID="blue"):
        assert listed(store) == {}
        assert set(listed(store, MC_METADATA_CLUSTER_ID="blue")) == {"blue"}


def test_an_engine_that_ends_well_leaves_nothing(store: str) -> None:
    with engine_in(store, "node") as engine:
        assert engine.end() == 0
        assert listed(store) == {}


def answered(question: str, *arguments: str) -> tuple[int, str]:
    """Run the command on a terminal, type a line, and return the exit status and what it has printed."""
    here, there = pty.openpty()
    settings = environment(**PASSWORD)
    process = subprocess.Popen(
        [sys.executable, "-m", "kvferry", *arguments], env=settings, stdin=there, stdout=there, stderr=there
    )
    os.close(there)
    shown = b""
    try:
        while b"[y/N]" not in shown:
            shown += os.read(here, 1 << 12)
        os.write(here, question.encode() + b"\n")
        while data := os.read(here, 1 << 12):
            shown += data
    except OSError:  # the terminal has no writer any more
        pass
    finally:
        os.close(here)
    return process.wait(60), shown.decode()


def test_the_user_is_asked_before_an_engine_is_removed(tmp_path: Path) -> None:
    with store_of("http", tmp_path) as store, engine_in(store, "killed") as killed:
        killed.process.kill()
        killed.process.wait(60)
        for answer in ("", "n", "yess"):
            status, shown = answered(answer, "rm", store, "killed")
            assert status == 1 and "nothing was removed" in shown
            assert set(listed(store)) == {"killed"}
        status, shown = answered("y", "rm", store, "killed")
        assert status == 0 and "removed killed" in shown
        assert listed(store) == {}


def test_engines_of_mooncake_are_told_from_ours(start_peer: Peers, tmp_path: Path) -> None:
    peer = start_peer(venvs.VERSIONS[-1])
    with store_of("http", tmp_path) as store:
        assert peer.try_create("theirs:12345", metadata=store) == 0
        peer.memory(1 << 20)
        member = listed(store)["theirs:12345"]
        assert (member["kind"], member["state"], member["buffers"]) == ("mooncake", "reachable", 1)


def test_mooncakes_server_cannot_list_but_knows_engines_by_name(tmp_path: Path) -> None:
    try:
        server = MooncakeServer(venvs.VERSIONS[-1], tmp_path / "server.log")
    except venvs.Unavailable as e:
        unavailable(str(e))
    try:
        with engine_in(server.address, "node"):
            status, _, err = run("ls", server.address)
            assert status == 1 and "cannot list its keys, as Mooncake's: name the engines" in err
            assert listed(server.address, "node")["node"]["state"] == "reachable"
    finally:
        server.kill()


def test_without_a_store_engines_are_asked_by_their_addresses() -> None:
    node = Node(8192)
    with served("--size", "1M") as (peer, _):
        status, out, _ = run("--json", "ls", "P2PHANDSHAKE", node.name, peer, "127.0.0.1:9")
    assert status == 1
    found = {member["name"]: (member["state"], member["bytes"]) for member in json.loads(out)}
    assert found == {
        node.name: ("reachable", 8192),
        peer: ("reachable", (1 << 20) + 4096),
        "127.0.0.1:9": ("stale", 0),
    }
    status, _, err = run("ls", "P2PHANDSHAKE")
    assert status == 1 and "name them" in err
    assert run("rm", "P2PHANDSHAKE", node.name, "--yes", "--force")[0] == 1


@pytest.mark.parametrize("store", ["etcd://127.0.0.1:9", "redis://127.0.0.1:9", "http://127.0.0.1:9/metadata"])
def test_a_store_that_is_not_there_is_an_error_that_names_it(store: str) -> None:
    status, _, err = run("ls", store)
    assert status == 1 and f"kvferry ls failed: metadata store {store}: listing mooncake/rpc_meta/" in err
    status, _, err = run("rm", store, "node", "--yes")
    assert status == 1 and store in err


def test_a_store_of_no_kind_is_an_error() -> None:
    status, _, err = run("ls", "ftp://10.0.0.1")
    assert status == 1 and 'unknown scheme "ftp"' in err


def test_amounts_of_memory_have_one_unit() -> None:
    amounts = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 30: "1.0 GiB", 3 << 40: "3.0 TiB"}
    assert {amount: memory_text(amount) for amount in amounts} == amounts


def test_a_text_of_the_library_is_freed_once_and_read_until_then() -> None:
    functions = load()
    result = c_uint64()
    arguments = b"P2PHANDSHAKE", b"127.0.0.1:9", 5000
    assert background_call(functions, functions.kvferry_start_members, arguments, 30, result) == 0
    room = create_string_buffer(8)
    length = functions.kvferry_text(result.value, room, len(room))
    assert length > 100 and room.raw == b'[{"name\0'
    assert functions.kvferry_text(result.value, None, 0) == length
    assert functions.kvferry_text_free(result.value) == 0
    for handle in (result.value, 0, 1):
        assert functions.kvferry_text(handle, room, len(room)) < 0
        assert functions.kvferry_text_free(handle) < 0
        assert "text" in last_error(functions)
    assert not functions.kvferry_start_members(None, None, 0)
    assert not functions.kvferry_start_forget(b"P2PHANDSHAKE", None, 0)


def test_asking_a_store_that_does_not_answer_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = f"http://127.0.0.1:{silent.getsockname()[1]}/metadata"
        status, _, err = run("ls", store, "--timeout", "2")
    assert status == 1 and store in err
