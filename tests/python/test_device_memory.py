"""Device memory of kvferry.npu and kvferry.gpu, on simulated devices."""

from __future__ import annotations

import ctypes
import json
import threading
from pathlib import Path

import pytest

from kvferry import simulator
from kvferry._device import Memory, Runtime
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL
from support.inprocess import run_python

RUNTIMES = {"npu": AscendCL, "cuda": CUDA}
VARIABLES = {"npu": "KVFERRY_ASCENDCL", "cuda": "KVFERRY_CUDA"}


@pytest.fixture(params=RUNTIMES)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = str(request.param)
    monkeypatch.setenv(VARIABLES[found], simulator.library(found))
    return found


@pytest.fixture
def runtime(kind: str) -> Runtime:
    return RUNTIMES[kind]()


@pytest.fixture
def memory(runtime: Runtime) -> Memory:
    return runtime.allocate(1000)


def test_the_simulator_is_known_as_such(runtime: Runtime, kind: str) -> None:
    assert runtime.simulated
    assert runtime.path == simulator.library(kind)
    assert runtime.devices() >= 1


def test_bytes_come_back_from_where_they_were_written(memory: Memory, kind: str) -> None:
    memory.write(bytes(1000))
    memory.write(b"KV cache", 7)
    assert memory.read(10, 6) == b"\0KV cache\0"
    assert memory.location == f"{kind}:0"


def test_nothing_is_written_and_read_at_the_end(memory: Memory) -> None:
    memory.write(b"", 1000)
    assert memory.read(0, 1000) == b""


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (1000, 1), (0, 1001), (2**63, 1)])
def test_a_range_outside_of_the_memory_is_refused(memory: Memory, kind: str, offset: int, length: int) -> None:
    with pytest.raises(IndexError, match=f"of 1000 bytes of memory of {kind}:0"):
        memory.read(length, offset)
    with pytest.raises(IndexError, match=f"of 1000 bytes of memory of {kind}:0"):
        memory.write(bytes(length), offset)


def test_any_thread_may_use_the_memory(memory: Memory) -> None:
    found: list[bytearray] = []
    memory.write(b"KV cache")
    thread = threading.Thread(target=lambda: found.append(memory.read(8)))
    thread.start()
    thread.join()
    assert found == [b"KV cache"]


def test_a_copy_can_come_from_and_go_to_page_locked_memory(runtime: Runtime, memory: Memory) -> None:
    pinned = runtime.allocate_pinned(16)
    ctypes.memmove(pinned.address, b"KV cache", 8)
    memory.write_from(pinned.address, 8, 100)
    memory.read_to(pinned.address + 8, 8, 100)
    assert ctypes.string_at(pinned.address, 16) == b"KV cache" * 2


def test_a_library_can_be_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[kind], "/nonexistent.so")
    assert RUNTIMES[kind](simulator.library(kind)).path == simulator.library(kind)


@pytest.mark.parametrize("ending", ["", "memory.close(); pinned.close(); runtime.close()"])
def test_everything_is_given_back_in_the_end(kind: str, ending: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    program = f"""
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL
runtime = {RUNTIMES[kind].__name__}()
memory, pinned = runtime.allocate(1000, 1), runtime.allocate_pinned(1000, 0)
memory.write(b"KV cache")
{ending}
"""
    named = {VARIABLES[kind]: simulator.library(kind), "KVFERRY_SIM_DEVICES": "2"}
    done = run_python(program, 30, **named, KVFERRY_SIM_REPORT=str(report))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(report.with_name("report.cuda" if kind == "cuda" else "report").read_text())
    assert found["copied_bytes"]["h2d"] == 8
    assert not any(found["leaked"].values()) and not any(found["misuse"].values()), found
