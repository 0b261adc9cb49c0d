"""Finds and loads the native library: once per process, when the first engine is made.

A Go runtime does not survive fork(). So a child that was forked after its parent had loaded the library loads a
private copy of the file, which has a runtime of its own; the inherited copy refuses every call by itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from kvferry._bindings import Functions

FILE = Path(__file__).resolve().parent / "_lib" / "libtransfer_engine.so"
VARIABLE = "KVFERRY_LIBRARY"


class LibraryError(RuntimeError):
    """The native library cannot be used in this process; the text says why."""


class _Loaded(NamedTuple):
    functions: Functions
    pid: int
    path: Path  # of the file, of which a forked child has a private copy


_loaded: _Loaded | None = None
_lock = threading.Lock()


def load() -> Functions:
    """The library's functions in this process. Any thread may call it; LibraryError says why there is no library."""
    global _loaded
    with _lock:
        if _loaded is None or _loaded.pid != os.getpid():
            path = _find()
            functions = _open(path) if _loaded is None else _open_private_copy(path)
            _loaded = _Loaded(functions, os.getpid(), path)
        return _loaded.functions


def in_use() -> Path | None:
    """The file of the library that load() has loaded; None before."""
    return None if _loaded is None else _loaded.path


def _find() -> Path:
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else FILE
    if path.is_file():
        return path
    if named:
        raise LibraryError(f"{VARIABLE} names {named}, which is no file")
    raise LibraryError(f"the native library is missing: {path} does not exist. {_platform_trouble() or _NOT_BUILT}")


_NOT_BUILT = "Build it with 'make build' in a source tree, or install the wheel for this platform."


def _platform_trouble() -> str | None:
    """Why there is no library for this platform, or None where there should be one."""
    if sys.platform != "linux":
        return f"kvferry runs on Linux; this is {sys.platform}."
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"kvferry runs on x86_64 and aarch64; this is {platform.machine()}."
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return "kvferry needs a Linux with glibc; this one has another C library, such as Alpine's musl."
    return None


def _open(path: Path) -> Functions:
    try:
        return Functions(ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL))
    except OSError as e:
        trouble = _platform_trouble()
        raise LibraryError(f"{path} cannot be loaded: {e}" + (f". {trouble}" if trouble else "")) from e
    except AttributeError as e:
        raise LibraryError(f"{path} is of another version than this package: {e}") from e


def _open_private_copy(path: Path) -> Functions:
    """Load the library a second time. The dynamic linker knows files by inode, so the copy needs one of its own."""
    try:
        with tempfile.NamedTemporaryFile(prefix="kvferry-", suffix=".so") as copy:
            with path.open("rb") as original:
                shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            return _open(Path(copy.name))
    except OSError as e:
        raise LibraryError(f"no copy of {path} can be made for this forked process: {e}") from e


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
