"""What this machine has to measure with: interpreters with the engines, C programs, links. What is missing is told."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable, NamedTuple

import link
from comparison.adapters import MODULES
from comparison.pairs import environment
from support import venvs

SOURCES = Path(__file__).parent
FLAGS = ("-O2", "-std=c99", "-pthread")
NONE = "none"  # as an interpreter: leave the engine out
PACKAGES = {
    "ours": ("kvferry",),
    "mooncake": (venvs.PACKAGE, "mooncake-transfer-engine", "mooncake-transfer-engine-cuda13"),
    "nixl": ("nixl-cu12", "nixl-cu13"),
}

# What a version is asked by, in the interpreter of the engine.
VERSION = """
import importlib.metadata as m, sys
found = {d.metadata["Name"]: d.version for d in m.distributions()}
print(next((found[name] for name in sys.argv[1:] if name in found), "of unknown version"))
"""


class Machine(NamedTuple):
    pythons: dict[str, str]  # interpreters by the engine: "ours", "mooncake", "nixl"
    rawtcp: Path | None
    delaylink: Path | None
    iperf3: str | None
    told: dict[str, str]  # what the machine is, and versions
    missing: list[str]  # what cannot be run, why, and how to get it


def find(options: argparse.Namespace) -> Machine:
    """Install and build what is not there."""
    missing: list[str] = []
    pythons = dict(interpreters(options, missing))
    programs = options.output / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    rawtcp, delaylink = (built(name, programs, missing) for name in ("rawtcp", "delaylink"))
    if delaylink and (why := no_link(delaylink)):
        missing.append(why)
        delaylink = None
    iperf3 = shutil.which("iperf3")
    if iperf3 is None:
        missing.append("iperf3: not found; `apt-get install iperf3`")
    return Machine(pythons, rawtcp, delaylink, iperf3, dict(description(pythons)), missing)


def interpreters(options: argparse.Namespace, missing: list[str]) -> Iterator[tuple[str, str]]:
    """The engines that can be used: ours in any case."""
    yield "ours", options.ours or sys.executable
    installers: dict[str, Callable[[], Path]] = {"mooncake": mooncake, "nixl": venvs.nixl}
    for kind, install in installers.items():
        given = getattr(options, kind)
        if given == NONE:
            missing.append(f"{kind}: left out by --{kind} {NONE}")
            continue
        try:
            python = Path(given) if given else install()
            venvs.check_import(python, str(python), MODULES[kind], "install it there")
            yield kind, str(python)
        except (venvs.Unavailable, OSError, subprocess.TimeoutExpired) as e:
            missing.append(f"{kind}: {e}")


def mooncake() -> Path:
    return venvs.mooncake(venvs.VERSIONS[-1])


def built(name: str, folder: Path, missing: list[str]) -> Path | None:
    """A C program, from its source beside this file."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    what = {"rawtcp": "the plain C program", "delaylink": "the link with a round trip"}[name]
    if compiler is None:
        missing.append(f"{what}: there is no C compiler; `apt-get install gcc libc6-dev`, or set CC")
        return None
    program = folder / name
    command = [*compiler.split(), *FLAGS, str(SOURCES / f"{name}.c"), "-o", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        why = venvs.last_line(done.stderr) if done.returncode else ""
    except OSError as e:
        why = str(e)
    if why:
        missing.append(f"{what}: {name}.c cannot be compiled ({why}); `{' '.join(command)}` must work")
    return None if why else program


def no_link(delaylink: Path) -> str:
    """Why there can be no link with a round trip; "" where there can be one."""
    try:
        with link.delayed(delaylink, 0):
            return ""
    except (link.LinkError, OSError) as e:
        return (
            f"the link with a round trip: {e}; it needs root, with the right to make network namespaces, /dev/net/tun,"
            " and unshare and nsenter (`apt-get install util-linux`)"
        )


def description(
    pythons: Mapping[str, str], settings: Mapping[str, Mapping[str, str]] = {}
) -> Iterator[tuple[str, str]]:
    """settings are environment variables with which an interpreter finds its engine."""
    yield "processor", processor()
    yield "processors", str(os.cpu_count())
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB"
    yield "system", f"Linux {platform.release()}, {platform.machine()}, {' '.join(platform.libc_ver())}"
    yield "load before", f"{os.getloadavg()[0]:.1f}"
    yield "Python", platform.python_version()
    for kind, python in pythons.items():
        yield kind, version(kind, python, settings.get(kind, {}))


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def version(kind: str, python: str, settings: Mapping[str, str]) -> str:
    command = [python, "-c", VERSION, *PACKAGES[kind]]
    done = subprocess.run(command, env={**environment(kind), **settings}, cwd="/", capture_output=True, text=True)
    return done.stdout.strip() or f"of unknown version ({venvs.last_line(done.stderr)})"
