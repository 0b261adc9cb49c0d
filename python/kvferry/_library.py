"""Finds and loads the native library: once per process, when the first engine is made.

A Go runtime does not survive fork(). A child that was forked after its parent had loaded the library therefore loads a
private copy of the file, with a runtime of its own. The inherited copy refuses every call.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kvferry._bindings import Functions
from kvferry._errors import Error

FILE = Path(__file__).resolve().parent / "_lib" / "libtransfer_engine.so"
VARIABLE = "KVFERRY_LIBRARY"


class LibraryError(Error):
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


def check_process(pid: int) -> None:
    """LibraryError where this process was forked from the one with that id, which has made an engine."""
    if os.getpid() != pid:
        raise LibraryError(
            f"this engine was made by process {pid}, from which this one was forked; an engine cannot be used after "
            "fork(): make a new one"
        )


def in_use() -> Path | None:
    """The file of the library that load() has loaded; None before."""
    return None if _loaded is None else _loaded.path


def _find() -> Path:
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else FILE
    if os.path.isfile(path):  # False also for a path that is no valid one
        return path
    if named:
        raise LibraryError(f"{VARIABLE} names {named}, which is no file")
    raise LibraryError(f"the native library is missing: {path} does not exist. {_platform_problem() or _NOT_BUILT}")


_NOT_BUILT = "Build it with 'make build' in a source tree, or install the wheel for this platform."


def _platform_problem() -> str | None:
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


LOADING_ROOM = 1664 << 20  # bytes of address space that the Go runtime and its threads take when it is loaded
LOADING_DATA = 160 << 20  # bytes of it that can be written
LOADING_DESCRIPTORS = 8  # more than loading opens at a time; the Go runtime ends the process if it cannot open its own
LOADING_THREADS = 8  # the most that the Go runtime starts when it is loaded; it ends the process if it cannot
# Settings in GODEBUG for which the Go runtime ends the process, or stands still, with other values than these.
GO_DEBUG = {"cgocheck": ("0", "1"), "fips140": ("off", "on", "only", "debug"), "sbrk": ("0",)}
MOST_PROCESSORS = 4096  # GOMAXPROCS with which the threads of the library are within what the Go runtime allows


def _require_memory() -> None:
    """LibraryError where the process may not have the memory that loading takes."""
    import resource  # a system that has none gets as far as the error that says which systems are supported

    writable = mmap.PROT_READ | mmap.PROT_WRITE
    for limit, room, protection, name, option in (
        (resource.RLIMIT_AS, LOADING_ROOM, 0, "address space, and RLIMIT_AS", "ulimit -v"),
        (resource.RLIMIT_DATA, LOADING_DATA, writable, "writable memory, and RLIMIT_DATA", "ulimit -d"),
    ):
        if resource.getrlimit(limit)[0] == resource.RLIM_INFINITY:
            continue
        try:
            mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection).close()
        except OSError as e:
            raise LibraryError(
                f"loading the library takes {room >> 20} MiB of {name} leaves less: {e}: raise it ({option})"
            ) from e


def _require_descriptors() -> None:
    """LibraryError where the process may not open the files that loading takes."""
    opened: list[int] = []
    try:
        while len(opened) < LOADING_DESCRIPTORS:
            opened.extend(os.pipe())
    except OSError as e:
        raise LibraryError(
            f"the {LOADING_DESCRIPTORS} file descriptors that loading the library takes cannot be opened: {e}: raise "
            "RLIMIT_NOFILE (ulimit -n)"
        ) from e
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _require_go_settings() -> None:
    """LibraryError where the environment has a setting of the Go runtime by which it would end the process."""
    text = os.environ.get("GOMEMLIMIT", "")
    number = re.fullmatch(r"([0-9]+)(B|KiB|MiB|GiB|TiB)?", text)
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    if text not in ("", "off") and not (number and int(number[1]) * units.get(number[2], 1) < 1 << 63):
        raise LibraryError(
            f"GOMEMLIMIT={text!r} in the environment is not a number of bytes, such as 512MiB: unset or correct it"
        )
    processors = os.environ.get("GOMAXPROCS", "")
    if re.fullmatch(r"[0-9]+", processors) and int(processors) > MOST_PROCESSORS:
        raise LibraryError(f"GOMAXPROCS={processors} in the environment is above {MOST_PROCESSORS}: unset or lower it")
    debug = dict(entry.partition("=")[::2] for entry in os.environ.get("GODEBUG", "").split(","))
    for name, allowed in GO_DEBUG.items():
        if debug.get(name, "") not in ("", *allowed):
            raise LibraryError(
                f"{name}={debug[name]} in the environment's GODEBUG is none of {', '.join(allowed)}: "
                "unset or correct it"
            )


def _require_threads() -> None:
    """LibraryError where the system does not start the threads that loading takes."""
    started, enough = [], threading.Event()
    try:
        for _ in range(LOADING_THREADS):
            thread = threading.Thread(target=enough.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as e:
        raise LibraryError(
            f"the {LOADING_THREADS} threads that loading the library takes cannot be started: {e}: raise the pids "
            "limit of the container, or RLIMIT_NPROC"
        ) from e
    finally:
        enough.set()
        for thread in started:
            thread.join()


def _open(path: Path | str) -> Functions:
    _require_memory()
    _require_threads()
    _require_memory()  # again: malloc keeps some for threads when they have ended
    _require_descriptors()
    _require_go_settings()
    try:
        functions = Functions(ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL))
        functions.kvferry_rpc_port(0)  # returns an error once the Go runtime has started
        return functions
    except OSError as e:
        problem = _platform_problem()
        raise LibraryError(f"{path} cannot be loaded: {e}" + (f". {problem}" if problem else "")) from e
    except AttributeError as e:
        raise LibraryError(f"{path} is of another version than this package: {e}") from e


def _open_private_copy(path: Path) -> Functions:
    """Load the library a second time. The dynamic linker tells files apart by inode, so this needs a copy of the file.

    The copy is in memory; where the system does not run code from there, in a directory for temporary files.
    """
    failures = []
    for copy_of in (_copy_in_memory, _copy_on_disk):
        try:
            with path.open("rb") as original, copy_of(original) as copy:
                return _open(copy)
        except (OSError, LibraryError) as e:
            failures.append(str(e))
    raise LibraryError(f"no copy of {path} can be made for this forked process: {'; '.join(failures)}")


_copies = 0  # how many copies in memory this process and its ancestors have loaded


@contextlib.contextmanager
def _copy_in_memory(original: BinaryIO) -> Iterator[str]:
    """The name of a file in memory with the library in it."""
    global _copies
    with open(_memory_file(), "w+b") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        # The dynamic linker does not open a file whose name is that of a library it has, such as an ancestor's copy. So
        # each copy gets a name of its own, by its number of slashes, which mean nothing else. A Path would drop them.
        _copies += 1
        yield f"/proc/self/fd{'/' * _copies}{copy.fileno()}"


_SYS_MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
_MFD_CLOEXEC, _MFD_EXEC = 0x1, 0x10


def _memory_file() -> int:
    """A file in memory that may be executed, wherever Linux has that: Python's own call depends on the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = ctypes.c_long(_SYS_MEMFD_CREATE[platform.machine()])
    for flags in (_MFD_CLOEXEC | _MFD_EXEC, _MFD_CLOEXEC):  # Linux before 6.3 has no MFD_EXEC, and needs none
        descriptor: int = libc.syscall(call, b"kvferry", ctypes.c_uint(flags))
        if descriptor >= 0:
            return descriptor
    code = ctypes.get_errno()
    raise OSError(code, f"memfd_create: {os.strerror(code)}")


@contextlib.contextmanager
def _copy_on_disk(original: BinaryIO) -> Iterator[str]:
    """The name of a temporary file with the library in it."""
    with tempfile.NamedTemporaryFile(prefix="kvferry-", suffix=".so") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        yield copy.name


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
