"""The simulated devices, used by C programs: each checks what its first line says, and ends with 0."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvferry.simulator import FILES
from support.venvs import REPOSITORY

from .conftest import SOURCES, Simulator, checked

PROGRAMS = ["memory", "devices", "streams", "faults", "costs", "threads", "fork"]
PROGRAMS += ["cuda_contexts", "cuda_memory", "cuda_virtual", "cuda_streams", "cuda_faults", "cuda_threads", "cuda_fork"]
PROGRAMS += ["cuda_modules", "cuda_peers"]
# A child that was forked while another thread allocated has a leak that nobody made, and would end a second later.
FORKING = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "atexit_sleep_ms=0"}
NEWER = {
    "npu": {
        "aclrtMemcpyBatchAsync",
        "aclrtMemcpyBatchAsyncV2",
        "aclrtPointerGetAttributes",
        "aclrtSynchronizeEventWithTimeout",
    },
    "cuda": {"cuMemcpyBatchAsync", "cuMemcpyBatchAsync_v2"},
}
HEADERS = {"npu": "acl.h", "cuda": "cu.h"}
LIBRARIES = pytest.mark.parametrize("kind", list(FILES))
# The program for each library whose process ends in different ways.
EXITS = {"npu": "exit", "cuda": "cuda_exit"}
SUFFIXES = {"npu": "", "cuda": ".cuda"}


@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_finds_what_the_simulator_promises(simulator: Simulator, name: str, variant: str) -> None:
    done = simulator.run(name, variant, settings=FORKING if name.endswith("fork") else {})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("variant", ["plain", "address"])
@pytest.mark.parametrize("name", ["order", "cuda_order"])
def test_missing_wait_shows_as_wrong_bytes(simulator: Simulator, name: str, variant: str) -> None:
    done = simulator.run(name, variant)
    assert done.returncode == 0, done.stdout + done.stderr


def exported(library: Path) -> set[str]:
    symbols = checked(["nm", "-D", "--defined-only", str(library)])
    return {line.split()[-1] for line in symbols.splitlines()}


def declared(header: Path) -> set[str]:
    """Return the names of the functions that a header declares."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    return set(re.findall(r"\b(acl\w+|cu\w+|kvferry_sim_\w+)\(", text))


@LIBRARIES
def test_library_exports_its_api_and_its_controls_and_nothing_else(simulator: Simulator, kind: str) -> None:
    wanted = declared(Path(__file__).parent / HEADERS[kind]) | declared(SOURCES / "kvferry_sim.h")
    assert exported(simulator.library(kind, "plain")) == wanted


@LIBRARIES
def test_older_release_lacks_what_came_later(simulator: Simulator, kind: str) -> None:
    newer = exported(simulator.library(kind, "plain"))
    assert exported(simulator.library(kind, "older")) == newer - NEWER[kind]
    assert NEWER[kind] < newer


@LIBRARIES
def test_library_is_named_as_programs_look_for_it(simulator: Simulator, kind: str) -> None:
    assert f"[{FILES[kind]}]" in checked(["readelf", "-d", str(simulator.library(kind, "plain"))])


@LIBRARIES
@pytest.mark.parametrize("how", ["busy", "hanging", "clean", "leaky"])
def test_process_ends_at_once_and_without_a_word(simulator: Simulator, kind: str, how: str) -> None:
    done = simulator.run(EXITS[kind], "plain", how)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("kind", "runtime"), [("npu", "AscendCL"), ("cuda", "CUDA")])
def test_misuse_is_printed_in_one_line(simulator: Simulator, kind: str, runtime: str) -> None:
    done = simulator.run(EXITS[kind], "plain", "wrong")
    assert done.returncode == 0
    assert done.stderr == f"kvferry simulator: {runtime} was misused: no_device_set 1\n"


def report(simulator: Simulator, kind: str, how: str, folder: Path, **settings: str) -> dict[str, Any]:
    """Run a program that ends and return the report that it leaves: CUDA's is in a file of its own."""
    file = folder / "report.json"
    done = simulator.run(EXITS[kind], "plain", how, settings={"KVFERRY_SIM_REPORT": str(file), **settings})
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(Path(f"{file}{SUFFIXES[kind]}").read_text())
    return found


def test_report_of_a_clean_process_has_no_leaks(simulator: Simulator, tmp_path: Path) -> None:
    found = report(simulator, "npu", "clean", tmp_path)
    assert set(found["leaked"].values()) == {0}
    assert set(found["misuse"].values()) == {0}
    assert found["copies"] == {"h2h": 0, "h2d": 1, "d2h": 0, "d2d": 0}
    assert found["copied_bytes"]["h2d"] == 4 << 20
    assert (found["pageable_copies"], found["executed"], found["faults"], found["busy_streams"]) == (0, 1, 0, 0)
    assert found["calls"]["aclrtMemcpyAsync"] == 1
    assert found["calls"]["aclrtMemcpy"] == 0
    assert found["devices"] == [{"sets": 1, "resets": 1, "lost": False}, {"sets": 0, "resets": 0, "lost": False}]


def test_report_says_which_devices_had_contexts(simulator: Simulator, tmp_path: Path) -> None:
    found = report(simulator, "cuda", "clean", tmp_path)
    assert set(found["leaked"].values()) == {0}
    assert set(found["misuse"].values()) == {0}
    assert found["calls"]["cuMemcpyHtoDAsync_v2"] == 1
    assert found["devices"] == [{"sets": 0, "resets": 0, "lost": False}, {"sets": 1, "resets": 1, "lost": False}]


def test_guide_names_every_kind_of_misuse_and_every_variable(simulator: Simulator, tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "simulator.md").read_text()
    variables = {name for source in SOURCES.glob("*.c") for name in re.findall(r"KVFERRY_SIM_\w+", source.read_text())}
    for name in [*report(simulator, "npu", "clean", tmp_path)["misuse"], *variables]:
        assert f"`{name}`" in guide or f"-D{name}`" in guide, name


@pytest.mark.parametrize(("kind", "ranges"), [("npu", 0), ("cuda", 1)])
def test_report_says_what_is_leaked(simulator: Simulator, tmp_path: Path, kind: str, ranges: int) -> None:
    assert report(simulator, kind, "leaky", tmp_path)["leaked"] == {
        "device_allocations": 1,
        "device_bytes": 4 << 20,
        "host_allocations": 1,
        "host_bytes": 4 << 20,
        "virtual_ranges": ranges,
        "streams": 1,
        "events": 1,
        "device_sets": 1,
    }


def test_report_can_go_to_standard_error(simulator: Simulator) -> None:
    done = simulator.run("exit", "plain", "clean", settings={"KVFERRY_SIM_REPORT": "stderr"})
    assert json.loads(done.stderr)["calls"]["aclInit"] == 1


def test_report_that_cannot_be_written_is_an_error_on_stderr(simulator: Simulator, tmp_path: Path) -> None:
    done = simulator.run("exit", "plain", "clean", settings={"KVFERRY_SIM_REPORT": str(tmp_path / "no" / "where")})
    assert done.returncode == 0
    assert f"no report can be written to {tmp_path}" in done.stderr


def test_variables_set_devices_and_faults(simulator: Simulator, tmp_path: Path) -> None:
    settings = {"KVFERRY_SIM_DEVICES": "5", "KVFERRY_SIM_FAULTS": "aclrtFree:7", "KVFERRY_SIM_COST": "0"}
    assert len(report(simulator, "npu", "clean", tmp_path, **settings)["devices"]) == 5
    assert len(report(simulator, "cuda", "clean", tmp_path, **settings)["devices"]) == 5
    done = simulator.run("exit", "plain", "clean", settings={"KVFERRY_SIM_FAULTS": "aclrtMallocHost:1=207001"})
    assert done.returncode == 1
    assert "is 207001, not 0 (aclrtMallocHost, call 1: a fault on purpose)" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KVFERRY_SIM_DEVICES", "0"),
        ("KVFERRY_SIM_DEVICES", "65"),
        ("KVFERRY_SIM_DEVICES", "many"),
        ("KVFERRY_SIM_SEED", "-1"),
        ("KVFERRY_SIM_COST", "d2h=fast"),
        ("KVFERRY_SIM_FAULTS", "aclrtMalloc"),
    ],
)
def test_variable_that_makes_no_sense_fails_the_initialization(simulator: Simulator, variable: str, value: str) -> None:
    done = simulator.run("exit", "plain", "clean", settings={variable: value})
    assert done.returncode == 1
    assert "kvferry simulator: " in done.stderr
    assert value in done.stderr


BOTH = """
import ctypes, sys
acl, cuda = map(ctypes.CDLL, sys.argv[1:])
memory, context = ctypes.c_void_p(), ctypes.c_void_p()
assert acl.aclInit(None) == 0
assert acl.aclrtSetDevice(1) == 0
assert acl.aclrtMalloc(ctypes.byref(memory), ctypes.c_size_t(100), 0) == 207001
assert acl.aclrtMalloc(ctypes.byref(memory), ctypes.c_size_t(100), 0) == 0
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 2
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
kind = ctypes.c_uint()
assert cuda.cuPointerGetAttribute(ctypes.byref(kind), 2, memory) == 1
assert acl.kvferry_sim_faults(b"lost:0@0") == 0
assert cuda.cuCtxSetCurrent(context) == 0
"""


def test_libraries_share_a_process_and_nothing_else(simulator: Simulator, tmp_path: Path) -> None:
    """The variables are one for both: each takes its own faults, and writes its own report."""
    report = tmp_path / "report.json"
    faults = "aclrtMalloc:1=207001,cuDevicePrimaryCtxRetain:1=2"
    env = {**os.environ, "KVFERRY_SIM_REPORT": str(report), "KVFERRY_SIM_FAULTS": faults}
    libraries = [str(simulator.library(kind, "plain")) for kind in ("npu", "cuda")]
    done = subprocess.run([sys.executable, "-c", BOTH, *libraries], env=env, timeout=60, check=False)
    assert done.returncode == 0
    npus, gpus = (json.loads(Path(f"{report}{suffix}").read_text()) for suffix in ("", ".cuda"))
    assert [device["sets"] for device in npus["devices"]] == [0, 1]
    assert [device["sets"] for device in gpus["devices"]] == [1, 0]
    assert [device["lost"] for device in npus["devices"]] == [True, False]
    assert [device["lost"] for device in gpus["devices"]] == [False, False]
    assert (npus["leaked"]["device_allocations"], gpus["leaked"]["device_allocations"]) == (1, 0)
    assert (npus["faults"], gpus["faults"]) == (1, 1)
