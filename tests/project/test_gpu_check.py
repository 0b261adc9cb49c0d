"""The check on machines with GPUs: its report tells what failed, hung or is missing, and it runs on simulated ones."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvferry import simulator
from support import unpacked, venvs
from support.inprocess import environment
from support.venvs import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
sys.path.insert(0, str(REPOSITORY / "bench"))

import gpu as benchmark
from comparison.case import Case
from comparison.pairs import EndError, Measured, Pair
from comparison.results import Results
from device_report import Part, Report, python

CHECK, BENCH = REPOSITORY / "scripts" / "test_gpu.py", REPOSITORY / "bench" / "gpu.py"
SIMULATED = {"KVFERRY_SIM_DEVICES": "2", "KVFERRY_SIM_COST": "0"}


def run(program: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), *arguments]
    found = environment(**{**venvs.ours(), **settings})
    return subprocess.run(command, env=found, capture_output=True, text=True, timeout=280)


@pytest.fixture
def gpus() -> dict[str, str]:
    """The environment of simulated ones."""
    return {"KVFERRY_CUDA": simulator.library("cuda"), **SIMULATED}


# The report.


def test_a_part_that_hangs_is_killed_with_what_it_started_and_the_others_run(tmp_path: Path) -> None:
    said, found = io.StringIO(), tmp_path / "report.json"
    report = Report(said)
    hang = (
        "import subprocess, sys; print('here'); subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    )
    assert not report.run("hangs", Part(python("-c", hang), 10))  # time enough to begin
    assert not report.run("fails", Part(python("-c", "raise SystemExit(3)"), 60))
    assert report.run("works", Part(python("-c", "import os; print(os.environ['SAID'])"), 60, {"SAID": "all is well"}))
    report.say_results()
    report.write_json(found, more=[1])
    assert [line.rsplit(",", 1)[0] for line in said.getvalue().splitlines()[-3:]] == [
        "hangs: FAILED: its time was over",
        "fails: FAILED with status 3",
        "works: passed",
    ]
    written = json.loads(found.read_text())
    assert written["parts"]["hangs"]["timed_out"] and written["parts"]["hangs"]["output"] == ["here"]
    assert written["parts"]["works"]["output"] == ["all is well"] and written["more"] == [1]


# The check.


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    done = run(CHECK, "--output", str(tmp_path), KVFERRY_CUDA="libm.so.6")
    assert done.returncode == 1
    assert "There is no GPU: " in (tmp_path / "gpu-report.txt").read_text()
    assert not json.loads((tmp_path / "gpu-report.json").read_text())["parts"]


def test_the_tests_of_gpus_run_with_simulated_ones(tmp_path: Path, gpus: dict[str, str]) -> None:
    chosen = "--pytest=-k 'one and tcp'"
    done = run(CHECK, "--only", "tests", chosen, "--output", str(tmp_path), **gpus)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-report.json").read_text())
    assert found["parts"]["tests"]["status"] == 0
    assert " passed" in found["parts"]["tests"]["output"][-1]


# The benchmark.


def test_the_benchmark_compares_every_byte_and_has_every_figure(tmp_path: Path, gpus: dict[str, str]) -> None:
    shortest = ("--rounds", "1", "--seconds", "0.001", "--cases", "4K,64K", "--output", str(tmp_path))
    peers = dict.fromkeys((unpacked.MOONCAKE, unpacked.NIXL), "")
    done = run(BENCH, *shortest, **gpus, **peers)
    assert done.returncode == 0, done.stdout + done.stderr
    found: Any = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["failures"]
    measured = {(entry["engine"], entry["case"]) for entry in found["cases"] if entry["rounds"][0]["bytes"] > 0}
    names = {"ours", "ours, same host", "host to host", "host to host, same host", "GPU to host", "host to GPU"}
    cases = {f"{op} {size}" for op in ("WRITE", "READ") for size in ("4 KiB x 256", "64 KiB x 64")}
    assert {(name, case) for name in names for case in cases} <= measured
    assert set(found["checked"]["GPU"]) == {f"{name}: {case}" for name in names for case in cases}
    for row in found["wanted"]:
        with_ours = row["what"].endswith(" / host to host")
        assert (row["reached"] != "not measured") == with_ours, "there is no peer to compare with"
    assert set(found["memory"]) == {"ours", "ours, same host"}


def test_an_engine_that_fails_is_started_again_and_its_failure_is_counted(
    tmp_path: Path, gpus: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a peer had ended between two rounds."""
    for name, value in {**venvs.ours(), **gpus}.items():
        monkeypatch.setenv(name, value)
    moves = Pair.move
    calls: list[str] = []

    def move(pair: Pair, *arguments: Any) -> Any:
        calls.append("move")
        if len(calls) == 2:
            raise EndError("on purpose")
        return moves(pair, *arguments)

    monkeypatch.setattr(Pair, "move", move)
    shortest = ("--rounds", "3", "--seconds", "0.001", "--cases", "4K", "--only", "ours", "--no-memory")
    monkeypatch.setattr(sys, "argv", ["gpu.py", *shortest, "--output", str(tmp_path)])
    assert benchmark.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["failures"]) == 1 and "on purpose" in found["failures"][0]
    assert sum(len(entry["rounds"]) for entry in found["cases"]) == len(calls) - 1


def test_ours_is_compared_with_the_better_of_the_others_and_with_host_memory() -> None:
    rates = {"ours": 9.0, "host to host": 10.0, "Mooncake": 1.0, "Mooncake, unpooled": 3.0, "NIXL": 2.0}
    results = Results()
    for case in benchmark.cases(["1M"]):
        for name, rate in rates.items():
            results.add("GPU", case, name, Measured(1.0, int(rate * 1e9), 0, 0, 0.1))
    rows = [row.row() for row in benchmark.wanted(results, ["4K", "1M"])]
    case = Case("write", 1 << 20, 32)
    assert [row[3] for row in rows[:4]] == ["not measured"] * 4
    assert rows[4:6] == [
        [f"{case}: GPU to GPU / Mooncake, unpooled", "4.00 at least", "3.00", "no", "-"],
        [f"{case}: GPU to GPU / host to host", "0.85 at least", "0.90", "yes", "-"],
    ]


def test_the_time_of_one_request_is_compared_with_host_memory() -> None:
    results = Results()
    for case in benchmark.cases(["one"]):
        for name, p50 in {"ours": 90.0, "host to host": 40.0}.items():
            results.add("GPU", case, name, Measured(1.0, case.block, p50, 0, 0.1))
    rows = [row.row() for row in benchmark.wanted(results, ["one"])]
    assert [row[1:] for row in rows] == [["2.00 at most", "2.25", "no", "-"]] * 2
