"""Finding and loading the native library, and the errors where there is none for this machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import kvferry
from kvferry import _library
from kvferry._library import LibraryError, load
from support.inprocess import run_python


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had not loaded the library."""
    monkeypatch.setattr(_library, "_loaded", None)


def test_the_library_is_of_the_packages_version() -> None:
    assert (load().kvferry_version() or b"").decode() == kvferry.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", kvferry.__version__)


def test_a_process_loads_it_once() -> None:
    assert load() is load()


@pytest.mark.usefixtures("not_loaded")
def test_the_variable_names_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVFERRY_LIBRARY", str(tmp_path / "missing.so"))
    with pytest.raises(LibraryError, match=r"KVFERRY_LIBRARY names .*missing\.so, which is no file"):
        load()
    monkeypatch.setenv("KVFERRY_LIBRARY", "x" * 5000)
    with pytest.raises(LibraryError, match="which is no file"):
        load()


@pytest.mark.usefixtures("not_loaded")
def test_a_file_that_is_no_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not an ELF file" * 100)
    monkeypatch.setenv("KVFERRY_LIBRARY", str(tmp_path / "broken.so"))
    with pytest.raises(LibraryError, match=r"broken\.so cannot be loaded: .*invalid ELF header"):
        load()


@pytest.mark.usefixtures("not_loaded")
def test_a_library_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    other = next(line.split()[-1] for line in maps if "libc.so" in line or "libc-" in line)
    monkeypatch.setenv("KVFERRY_LIBRARY", other)
    with pytest.raises(LibraryError, match=r"is of another version than this package: .*createTransferEngine"):
        load()


def no_glibc(name: str) -> str:
    raise ValueError("unrecognized configuration name")


@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (os, "confstr", no_glibc, "needs a Linux with glibc; this one has another C library, such as Alpine's musl"),
        (sys, "platform", "darwin", "kvferry runs on Linux; this is darwin"),
        (platform, "machine", lambda: "riscv64", "kvferry runs on x86_64 and aarch64; this is riscv64"),
        (os, "confstr", os.confstr, "Build it with 'make build' in a source tree, or install the wheel"),
    ],
)
def test_a_missing_library_says_why_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: Any, name: str, value: Any, reason: str
) -> None:
    monkeypatch.delenv("KVFERRY_LIBRARY", raising=False)
    monkeypatch.setattr(_library, "FILE", tmp_path / "libtransfer_engine.so")
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(LibraryError, match=f"libtransfer_engine.so does not exist. .*{reason}"):
        load()


def test_threads_that_make_the_first_engines_together_load_one_library() -> None:
    done = run_python("""
from kvferry._library import load
barrier, found = threading.Barrier(8), []
def first():
    barrier.wait()
    found.append(load())
threads = [threading.Thread(target=first) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert len(found) == 8 and len(set(map(id, found))) == 1
""")
    assert done.returncode == 0, done.stderr
