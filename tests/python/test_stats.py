"""What an engine says of itself: stats(), and the text for Prometheus."""

from __future__ import annotations

import json
import typing
from ctypes import create_string_buffer
from pathlib import Path
from typing import Any, Callable

import pytest

from kvferry import stats
from kvferry._engine import Engine
from kvferry._library import load
from mooncake.engine import TransferEngine
from support.inprocess import run_python
from support.ports import free_ports


def started() -> TransferEngine:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return engine


def fits(value: Any, kind: Any) -> None:
    """Check that a value is of a type, with the entries that a TypedDict has, and no other ones."""
    if hasattr(kind, "__total__"):  # a TypedDict
        hints = typing.get_type_hints(kind)
        assert set(value) == set(hints), kind
        for key, of in hints.items():
            fits(value[key], of)
    elif typing.get_origin(kind) is list:
        assert isinstance(value, list)
        for one in value:
            fits(one, typing.get_args(kind)[0])
    elif typing.get_origin(kind) is dict:
        assert isinstance(value, dict)
        for one in value.values():
            fits(one, typing.get_args(kind)[1])
    else:
        assert isinstance(value, (int, float) if kind is float else kind), (value, kind)


def test_stats_have_the_entries_of_their_type() -> None:
    target, engine = started(), started()
    memory, block = target.allocate_managed_buffer(4096), engine.allocate_managed_buffer(4096)
    name = f"127.0.0.1:{target.get_rpc_port()}"
    assert engine.transfer_sync_write(name, block, memory, 4096) == 0
    assert engine.transfer_sync_read(name, block, memory + (1 << 40), 100) != 0
    of_engine, of_target = engine.stats(), target.stats()
    assert of_engine is not None and of_target is not None
    fits(of_engine, stats.Stats)
    fits(of_target, stats.Stats)
    (peer,) = of_engine["initiator"]
    assert peer["peer"] == name
    assert peer["write"]["requests"] == 1
    assert sum(peer["write"]["bytes"].values()) == 4096
    assert peer["failures"] == {"rejected": 1}
    assert of_engine["failed_batches"] == 1
    (host,) = of_target["target"]
    assert host["write"]["requests"] == 1


def test_an_engine_that_is_closed_has_none() -> None:
    engine = Engine("127.0.0.1", "P2PHANDSHAKE", None, None)
    assert engine.stats()["engine"] == engine.name()
    engine.close()
    with pytest.raises(RuntimeError, match="was destroyed"):
        engine.stats()


def test_a_long_description_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started()
    monkeypatch.setattr(stats, "_ROOM", 10)
    found = engine.stats()
    assert found is not None and found["process"]["threads"] > 0


PROGRAM = """
import os, urllib.request
from mooncake.engine import TransferEngine
engines = [TransferEngine(), TransferEngine()]
for engine in engines:
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
address = os.environ["KVFERRY_METRICS_LISTEN"]
text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
for engine in engines:
    assert f'kvferry_sessions{{engine="127.0.0.1:{engine.get_rpc_port()}"}} 0' in text, text
del engine, engines
try:
    urllib.request.urlopen(f"http://{address}/metrics")
except OSError:
    print("ended")
"""


def test_the_engines_of_a_process_are_shown_until_they_end() -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    done = run_python(PROGRAM, KVFERRY_METRICS_LISTEN=address)
    assert done.stdout == "ended\n", done.stderr


FOUND = """
import glob, json, os, socket
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
folder = os.environ["KVFERRY_SOCKET_DIR"]
(path,) = glob.glob(f"{folder}/{os.getpid()}-*.sock")
with socket.socket(socket.AF_UNIX) as s:
    s.connect(path)
    s.sendall(b"GET /stats HTTP/1.0\\r\\n\\r\\n")
    answer = b"".join(iter(lambda: s.recv(65536), b""))
(found,) = json.loads(answer.partition(b"\\r\\n\\r\\n")[2])
assert found["engine"] == f"127.0.0.1:{engine.get_rpc_port()}", found
del engine
print(os.listdir(folder))
"""


def test_a_process_has_a_socket_for_commands_of_its_user(tmp_path: Path) -> None:
    done = run_python(FOUND, KVFERRY_SOCKET_DIR=str(tmp_path / "sockets"))
    assert done.stdout == "[]\n", done.stderr


def test_engines_work_where_no_socket_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (port,) = free_ports(1)
    done = run_python(PROGRAM, KVFERRY_SOCKET_DIR=str(tmp_path / "file"), KVFERRY_METRICS_LISTEN=f"127.0.0.1:{port}")
    assert done.stdout == "ended\n", done.stderr


def read_json(call: Callable[..., int], *arguments: object) -> Any:
    """What a function says that writes JSON; it must say as much of what does not fit."""
    length = call(*arguments, None, 0)
    assert length > 0
    text = create_string_buffer(length + 1)
    assert call(*arguments, text, length + 1) == length
    cut = create_string_buffer(10)
    assert call(*arguments, cut, 10) == length
    assert cut.value == text.value[:9]
    return json.loads(text.value)


def test_the_settings_are_described_as_the_environment_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MC_RETRY_CNT", "4")
    monkeypatch.setenv("MC_METADATA_HTTP_TOKEN", "hunter2")
    monkeypatch.setenv("KVFERRY_LISTN", "::")
    found = read_json(load().kvferry_settings_json)
    by_name = {setting["name"]: setting for setting in found["settings"]}
    assert by_name["MC_RETRY_CNT"] == {
        "name": "MC_RETRY_CNT", "value": "4", "default": "9", "source": "environment", "problem": ""
    }  # fmt: skip
    assert by_name["MC_METADATA_HTTP_TOKEN"]["value"] == "***"
    assert {"name": "KVFERRY_LISTN", "nearest": "KVFERRY_LISTEN", "own": True} in found["unknown"]
