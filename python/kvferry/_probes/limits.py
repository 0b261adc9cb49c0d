"""Limits of this process and its container."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

from kvferry._probes import read_number, read_text

CGROUPS = Path("/sys/fs/cgroup")


class Limits(NamedTuple):
    """None is no limit, or one that cannot be found out."""

    open_files: int  # of this process, now
    max_files: int | None  # soft limit: of this process
    hard_files: int | None  # how far the process may raise it
    locked_memory: int | None  # bytes
    processes: int | None  # of this user, threads included
    pids: int | None  # of the container, threads included
    pids_in_use: int | None


def limits() -> Limits:
    """The limits that processes started from here inherit."""
    soft, hard = (_finite(value) for value in resource.getrlimit(resource.RLIMIT_NOFILE))
    group = cgroup("pids")
    return Limits(
        open_files=open_files(),
        max_files=soft,
        hard_files=hard,
        locked_memory=_finite(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        processes=_finite(resource.getrlimit(resource.RLIMIT_NPROC)[0]),
        pids=None if group is None else read_number(group / "pids.max"),
        pids_in_use=None if group is None else read_number(group / "pids.current"),
    )


def _finite(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def open_files() -> int:
    """How many descriptors this process has open. It takes none: at the limit there is none left."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # that of the listing
    except OSError:
        return sum(_is_open(number) for number in range(min(highest, 1 << 16)))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def cgroup(controller: str) -> Path | None:
    """The folder of this process's control group, in the second version or in the first; None where it has none."""
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root = CGROUPS
        elif controller in controllers.split(","):
            root = CGROUPS / controller
        else:
            continue
        for folder in (root / path.lstrip("/"), root):  # in a container the path may be the host's
            if (folder / f"{controller}.max").exists():
                return folder
    return None
