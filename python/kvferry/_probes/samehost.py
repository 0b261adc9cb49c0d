"""Whether processes of this user may read each other's memory, as engines of one host do."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import NamedTuple

from kvferry._probes import read_number, read_text

MARK = b"kvferry same host"
LIMIT = 20.0  # seconds for the child

# Reads memory of its parent, which is not a descendant of it: engines are not of each other either.
CHILD = """
import ctypes, os, sys
class Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
length = int(sys.argv[2])
into = ctypes.create_string_buffer(length)
local, remote = Range(ctypes.addressof(into), length), Range(int(sys.argv[1]), length)
libc = ctypes.CDLL(None, use_errno=True)
libc.process_vm_readv.restype = ctypes.c_ssize_t
n = libc.process_vm_readv(os.getppid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
print(os.strerror(ctypes.get_errno()) if n < 0 else into.raw[:n].hex())
"""


class SameHost(NamedTuple):
    """What the system allows."""

    readable: bool  # a child has read this process's memory
    problem: str  # why it could not
    ptrace_scope: int | None  # kernel.yama.ptrace_scope; None where the kernel has no Yama
    seccomp: int | None  # 2: system calls of this process are filtered


def same_host() -> SameHost:
    """Have a child of this process read memory of it."""
    memory = ctypes.create_string_buffer(MARK, len(MARK))
    readable, problem = _read_by_child(ctypes.addressof(memory))
    return SameHost(readable, problem, ptrace_scope(), seccomp())


def _read_by_child(address: int) -> tuple[bool, str]:
    command = [sys.executable, "-I", "-S", "-c", CHILD, str(address), str(len(MARK))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except (OSError, subprocess.SubprocessError) as e:
        return False, f"the child that should read it could not run: {e}"
    said = done.stdout.strip()
    if done.returncode == 0 and said == MARK.hex():
        return True, ""
    return False, said if done.returncode == 0 else f"the child ended with status {done.returncode}"


def ptrace_scope() -> int | None:
    """The kernel's setting by which a process may be traced by others."""
    return read_number("/proc/sys/kernel/yama/ptrace_scope")


def seccomp() -> int | None:
    """0: system calls of this process are not filtered; 2: they are."""
    for line in (read_text(f"/proc/{os.getpid()}/status") or "").splitlines():
        if line.startswith("Seccomp:"):
            return int(line.split()[1])
    return None
