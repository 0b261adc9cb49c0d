"""kvferry.npu, on simulated NPUs."""

from __future__ import annotations

import ctypes
import json
import threading
from pathlib import Path

import pytest

from kvferry import simulator
from kvferry.npu import AscendCL, Memory, NpuError
from support.inprocess import run_python


@pytest.fixture
def acl(monkeypatch: pytest.MonkeyPatch) -> AscendCL:
    monkeypatch.setenv("KVFERRY_ASCENDCL", simulator.library())
    return AscendCL()


@pytest.fixture
def memory(acl: AscendCL) -> Memory:
    return acl.allocate(1000)


def test_the_simulator_is_known_as_such(acl: AscendCL) -> None:
    assert acl.simulated
    assert acl.path == simulator.library()
    assert acl.devices() >= 1


def test_bytes_come_back_from_where_they_were_written(memory: Memory) -> None:
    memory.write(bytes(1000))
    memory.write(b"KV cache", 7)
    assert memory.read(10, 6) == b"\0KV cache\0"
    assert memory.location == "npu:0"


def test_nothing_is_written_and_read_at_the_end(memory: Memory) -> None:
    memory.write(b"", 1000)
    assert memory.read(0, 1000) == b""


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (1000, 1), (0, 1001), (2**63, 1)])
def test_a_range_outside_of_the_memory_is_refused(memory: Memory, offset: int, length: int) -> None:
    with pytest.raises(IndexError, match="of 1000 bytes of memory of npu:0"):
        memory.read(length, offset)
    with pytest.raises(IndexError, match="of 1000 bytes of memory of npu:0"):
        memory.write(bytes(length), offset)


def test_any_thread_may_use_the_memory(memory: Memory) -> None:
    found: list[bytearray] = []
    memory.write(b"KV cache")
    thread = threading.Thread(target=lambda: found.append(memory.read(8)))
    thread.start()
    thread.join()
    assert found == [b"KV cache"]


def test_a_copy_can_go_to_page_locked_memory(acl: AscendCL, memory: Memory) -> None:
    pinned = acl.allocate_pinned(8)
    memory.write(b"KV cache", 100)
    memory.read_to(pinned.address, 8, 100)
    assert ctypes.string_at(pinned.address, 8) == b"KV cache"


def test_what_fails_is_told_with_the_librarys_reason(acl: AscendCL) -> None:
    with pytest.raises(NpuError, match=r"^aclrtSetDevice of .* failed with 107001: .*99"):
        acl.allocate(1, device=99)
    with pytest.raises(NpuError, match=r"^aclrtMalloc of .* failed with \d+: "):
        acl.allocate(1 << 62)


def test_a_library_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", "/nonexistent.so")
    with pytest.raises(NpuError, match=r"^AscendCL cannot be opened: /nonexistent\.so: "):
        AscendCL()


def test_another_library_is_not_taken_for_ascendcl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", "libc.so.6")
    with pytest.raises(NpuError, match=r"^libc\.so\.6 is not AscendCL: .*aclInit"):
        AscendCL()


@pytest.mark.parametrize("ending", ["", "memory.close(); pinned.close(); acl.close()"])
def test_everything_is_given_back_in_the_end(ending: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    program = f"""
from kvferry.npu import AscendCL
acl = AscendCL()
memory, pinned = acl.allocate(1000, 1), acl.allocate_pinned(1000, 0)
memory.write(b"KV cache")
{ending}
"""
    named = simulator.library()
    done = run_python(program, KVFERRY_ASCENDCL=named, KVFERRY_SIM_DEVICES="2", KVFERRY_SIM_REPORT=str(report))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(report.read_text())
    assert found["copied_bytes"]["h2d"] == 8
    assert not any(found["leaked"].values()) and not any(found["misuse"].values()), found
