"""Interpreters for the peers: this one for ours, a virtual environment per version of Mooncake for Mooncake's, and one
for NIXL, with which the benchmark compares."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("KVFERRY_PEERS_DIR", REPOSITORY / "build" / "peers"))
PACKAGE = "mooncake-transfer-engine-non-cuda"
VERSIONS = ("0.3.8", "0.3.11", "0.3.12", "0.3.13")
FOR_CUDA = "0.3.14"  # a version of which there are builds for CUDA alone
PACKAGE_FOR_CUDA = "mooncake-transfer-engine-cuda13"
CUDA_RUNTIME = "nvidia-cuda-runtime==13.*"
NIXL = "1.5.1"
LIBRARIES = ("libibverbs1", "ibverbs-providers", "libnuma1", "libcurl4")
PYTHONS = ("python3.11", "python3.12", "python3.10")  # for which every one of VERSIONS, and NIXL, has a wheel
AIOHTTP = (
    *("aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "idna", "multidict", "propcache"),
    *("typing-extensions", "yarl"),
)  # with all that it requires
INSTALL_LIMIT = 300.0  # seconds


class Unavailable(Exception):
    """A peer cannot run here; the text says how to change that."""


@functools.cache
def ours() -> dict[str, str]:
    """Return the environment variables by which this interpreter finds our package: none where it is installed."""
    probe = [sys.executable, "-c", "import kvferry, mooncake.engine; mooncake.engine.TransferEngine()"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MC_")}
    attempts: list[dict[str, str]] = [{}]
    built = REPOSITORY / "build" / "lib" / "libtransfer_engine.so"
    if built.exists():
        attempts.append({"PYTHONPATH": str(REPOSITORY / "python"), "KVFERRY_LIBRARY": str(built)})
    errors = []
    for settings in attempts:
        done = subprocess.run(probe, env={**clean, **settings}, cwd="/", capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return settings
        errors.append(last_line(done.stderr))
    raise Unavailable(
        f"{sys.executable} cannot load kvferry ({'; '.join(errors)}): install it with `pip install .`, or build the"
        f" library to {built}"
    )


@functools.cache
def mooncake(version: str) -> Path:
    """Return an interpreter that imports that version of Mooncake, made on first use."""
    # The package's own requirements serve its store and its tools; the engine module needs none of them.
    requirements = [f"{PACKAGE}=={version}.post1"]
    if version == FOR_CUDA:
        requirements = [f"{PACKAGE_FOR_CUDA}=={version}", CUDA_RUNTIME]
    python = environment(version, f"Mooncake {version}", "mooncake", *requirements)
    remedy = f"`apt-get install {' '.join(LIBRARIES)}`"
    check_import(python, f"Mooncake {version}", ["mooncake.engine"], remedy, mooncake_settings(version))
    return python


@functools.cache
def mooncake_settings(version: str) -> dict[str, str]:
    """Return the environment variables by which that version of Mooncake, once it is installed, finds its libraries. A
    build for CUDA gets the runtime that is beside it, and a driver that finds no GPU."""
    if version != FOR_CUDA:
        return {}
    home = PEERS / version
    runtimes = [str(path) for path in home.glob("lib/python*/site-packages/nvidia/*/lib")]
    return {"LD_LIBRARY_PATH": os.pathsep.join([str(driver_without_gpu(home)), *runtimes])}


def driver_without_gpu(home: Path) -> Path:
    """Return a folder with a libcuda.so.1 that finds no GPU, made on first use."""
    library = home / "driver" / "libcuda.so.1"
    with locked(PEERS / f"{home.name}.lock"):
        if not library.exists():
            compiler = shutil.which("cc")
            if compiler is None:
                raise Unavailable("there is no C compiler: install gcc")
            library.parent.mkdir(exist_ok=True)
            making = library.with_suffix(".new")
            source = Path(__file__).with_name("libcuda_without_gpu.c")
            subprocess.run([compiler, "-shared", "-fPIC", "-o", making, source], check=True, timeout=60)
            making.rename(library)
    return library.parent


@functools.cache
def http_metadata_server(version: str) -> list[str]:
    """Return the command of the HTTP metadata server that is in that version of Mooncake, without its options."""
    script = next(mooncake(version).parents[1].glob("lib/python*/site-packages/mooncake/http_metadata_server.py"))
    return [str(environment("aiohttp", "aiohttp", "aiohttp", *AIOHTTP)), str(script)]


@functools.cache
def nixl() -> Path:
    """Return an interpreter that imports NIXL, made on first use."""
    # Of the package's own requirements torch, with its gigabytes, serves tensors alone.
    python = environment(f"nixl-{NIXL}", f"NIXL {NIXL}", "nixl_cu12", f"nixl-cu12=={NIXL}", "numpy")
    check_import(python, f"NIXL {NIXL}", ["nixl_cu12._api"], f"remove {python.parents[1]} to have it installed again")
    return python


def environment(folder: str, what: str, module: str, *requirements: str) -> Path:
    """Return the interpreter of a virtual environment that has these packages, and with them the module."""
    python = PEERS / folder / "bin" / "python"
    PEERS.mkdir(parents=True, exist_ok=True)
    with locked(PEERS / f"{folder}.lock"):
        if not installed(python, module):
            install(PEERS / folder, what, *requirements)
    return python


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, so that test runs side by side do not install into one folder at once."""
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def installed(python: Path, module: str) -> bool:
    """Tell whether the package of a module is there, loadable or not."""
    if not python.exists():
        return False
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    return subprocess.run([str(python), "-I", "-c", find, module], capture_output=True, timeout=60).returncode == 0


def install(home: Path, what: str, *requirements: str) -> None:
    """Make a virtual environment with these packages, and nothing that they require."""
    steps = [
        [base_python(), "-m", "venv", "--clear", str(home)],
        [str(home / "bin" / "pip"), "install", "--quiet", "--no-deps", *requirements],
    ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_LIMIT)
            failure = last_line(done.stderr) if done.returncode else ""
        except subprocess.TimeoutExpired:
            failure = f"no end after {INSTALL_LIMIT:g} s"
        if failure:
            raise Unavailable(
                f"{what} cannot be installed ({failure}): `{' '.join(step)}` must work, or"
                f" KVFERRY_PEERS_DIR name a folder with a virtual environment {home.name} that has it"
            )


def base_python() -> str:
    if f"python3.{sys.version_info.minor}" in PYTHONS:
        return sys.executable
    for name in PYTHONS:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0:
            return path
    raise Unavailable(f"the peers' wheels need one of {', '.join(PYTHONS)}: install one of them")


def check_import(
    python: Path, what: str, modules: Sequence[str], remedy: str, settings: Optional[dict[str, str]] = None
) -> None:
    """Unavailable says why an interpreter can import none of these modules: why not the last one."""
    variables = {**os.environ, **(settings or {})}
    for module in modules:
        command = [str(python), "-I", "-c", f"import {module}"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return
    raise Unavailable(f"{what} does not load ({last_line(done.stderr)}): {remedy}")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
