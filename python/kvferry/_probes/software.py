"""Kernel, C library, kvferry, and Mooncake beside it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

import kvferry
from kvferry import _library
from kvferry._ffi import python_string
from kvferry._library import LibraryError


class Software(NamedTuple):
    """What runs here."""

    kvferry: str
    commit: str  # "" where it is not known
    package: str  # folder
    library: str  # file; "" where there is none
    library_version: str
    library_problem: str
    engine: str  # file of the mooncake.engine that a program imports; "" for none
    engine_is_kvferry: bool
    mooncake: tuple[tuple[str, str], ...]  # distributions of Mooncake that are installed: name, version
    python: str
    kernel: str
    c_library: str
    machine: str


def software() -> Software:
    """Describe the software of this interpreter. It loads the library."""
    folder = Path(kvferry.__file__).parent
    library = version = problem = ""
    try:
        version = python_string(_library.load().kvferry_version())
        library = str(_library.in_use() or "")
    except LibraryError as e:
        problem = str(e)
    engine = mooncake_engine()
    return Software(
        kvferry=kvferry.__version__,
        commit=commit(folder),
        package=str(folder),
        library=library,
        library_version=version,
        library_problem=problem,
        engine=engine,
        engine_is_kvferry=bool(engine) and Path(engine).resolve().is_relative_to(folder.resolve().parent),
        mooncake=mooncake_distributions(),
        python=f"{platform.python_version()} ({sys.executable})",
        kernel=f"{os.uname().sysname} {os.uname().release}",
        c_library=c_library(),
        machine=platform.machine(),
    )


def c_library() -> str:
    """The C library and its version; "" where it is not glibc."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        return ""


def commit(folder: Path) -> str:
    """The commit of the source that the package was built from."""
    try:
        return (folder / "_lib" / "commit").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def mooncake_engine() -> str:
    """The file of the mooncake.engine that a program of this interpreter imports."""
    try:
        spec = importlib.util.find_spec("mooncake.engine")
    except (ImportError, ValueError):
        return ""
    return "" if spec is None else spec.origin or ""


def mooncake_distributions() -> tuple[tuple[str, str], ...]:
    """The distributions that bring Mooncake's own modules."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if re.match(r"mooncake([-_.]|$)", name, re.IGNORECASE):
            found[name] = distribution.version
    return tuple(sorted(found.items()))
