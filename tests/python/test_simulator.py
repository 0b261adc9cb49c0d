"""The simulated devices of the package, and the command that prints where they are."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvferry import simulator
from kvferry._command.main import main
from kvferry._library import LibraryError
from support.inprocess import environment


@pytest.mark.parametrize(("arguments", "kind", "function"), [([], "npu", "aclInit"), (["cuda"], "cuda", "cuInit")])
def test_command_prints_a_path_that_the_engine_can_be_given(arguments: list[str], kind: str, function: str) -> None:
    command = [sys.executable, "-m", "kvferry", "simulator", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{simulator.library(kind)}\n"
    found = ctypes.CDLL(done.stdout.rstrip("\n"))
    assert hasattr(found, "kvferry_sim_report")
    assert hasattr(found, function)


def test_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="'tpu', only of npu and cuda"):
        simulator.library("tpu")
    with pytest.raises(SystemExit):
        main(["simulator", "tpu"])
    assert "choose from" in capsys.readouterr().err


def test_path_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", "/nonexistent")
    monkeypatch.setenv("KVFERRY_CUDA", "/nonexistent")
    for kind in ("npu", "cuda"):
        assert os.path.isabs(simulator.library(kind))
        assert Path(simulator.library(kind)).is_file()


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(simulator, "FOLDER", Path("/nonexistent"))
    with pytest.raises(LibraryError, match=r"/nonexistent/libascendcl\.so does not exist"):
        simulator.library()
    assert main(["simulator"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kvferry simulator failed: the simulated devices are missing: ")
