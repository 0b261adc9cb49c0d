"""The simulated NPUs of the package, and the command that tells where they are."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvferry import simulator
from kvferry._cli import main
from kvferry._library import LibraryError
from support.inprocess import environment


def test_command_prints_a_path_that_the_engine_can_be_given() -> None:
    command = [sys.executable, "-m", "kvferry", "simulator"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{simulator.library()}\n"
    assert hasattr(ctypes.CDLL(done.stdout.rstrip("\n")), "kvferry_sim_report")


def test_path_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", "/nonexistent")
    assert os.path.isabs(simulator.library())
    assert Path(simulator.library()).is_file()


def test_missing_library_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulator, "FILE", Path("/nonexistent/libascendcl.so"))
    with pytest.raises(LibraryError, match=r"/nonexistent/libascendcl\.so does not exist"):
        simulator.library()
    assert main(["simulator"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kvferry simulator failed: the simulated NPUs are missing: ")
