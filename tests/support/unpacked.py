"""Peers for GPU memory that are there as unpacked wheels: Mooncake's build for CUDA, and NIXL.

They are run by this interpreter, or by another one where a program is named instead of a folder. Of Mooncake's wheel,
mooncake/engine.so and the libraries beside it are enough.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import venvs

MOONCAKE = "KVFERRY_MOONCAKE_CUDA"  # the folder or the interpreter
NIXL = "KVFERRY_NIXL"
LIBRARIES = "KVFERRY_PEERS_LIBRARIES"  # folders of libraries that the machine lacks, as in LD_LIBRARY_PATH
IMPORT_LIMIT = 60.0  # seconds


class Interpreter(NamedTuple):
    """How a peer is run."""

    python: str
    settings: dict[str, str]  # environment variables


def find(what: str, variable: str, *modules: str) -> Interpreter:
    """What a variable names, if one of these modules can be imported with it. Unavailable says why there is nothing."""
    named = os.environ.get(variable)
    if not named:
        raise venvs.Unavailable(f"{what}: {variable} does not name a folder with its unpacked wheel, or an interpreter")
    path = Path(named)
    found = Interpreter(sys.executable, settings(path)) if path.is_dir() else Interpreter(named, {})
    failures = []
    for module in modules:
        try:
            done = subprocess.run(
                [found.python, "-c", f"import {module}"],
                env={**clean(), **found.settings},
                cwd="/",
                capture_output=True,
                text=True,
                timeout=IMPORT_LIMIT,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise venvs.Unavailable(f"{what}: {e}") from e
        if done.returncode == 0:
            return found
        failures.append(venvs.last_line(done.stderr))
    raise venvs.Unavailable(f"{what} of {named} does not load: {'; '.join(failures)}")


def mooncake() -> Interpreter:
    return find("Mooncake for CUDA", MOONCAKE, "mooncake.engine")


def nixl() -> Interpreter:
    return find("NIXL", NIXL, "nixl_cu13._api", "nixl_cu12._api")


def clean() -> dict[str, str]:
    """This process's environment without what leads to other packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def settings(folder: Path) -> dict[str, str]:
    """What has Python find the modules of a folder, and the loader their libraries."""
    folders = [folder / "mooncake", *folder.glob("*.libs"), *cuda_runtimes()]
    libraries = [str(path) for path in folders if path.is_dir()]
    libraries += filter(None, (os.environ.get(LIBRARIES), os.environ.get("LD_LIBRARY_PATH")))
    return {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def cuda_runtimes() -> Iterator[Path]:
    """Folders with CUDA's runtime library: PyTorch's, or a toolkit's."""
    for place in (*sys.path, "/usr/local"):
        for pattern in ("nvidia/*/lib", "cuda*/lib64"):
            yield from (path for path in Path(place or ".").glob(pattern) if list(path.glob("libcudart.so.*")))
