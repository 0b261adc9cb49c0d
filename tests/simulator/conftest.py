"""The simulator's libraries, as they are shipped and in other variants, and a way to run programs with them.

A program whose name begins with "cuda" uses CUDA, another uses AscendCL.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import pytest

from kvferry.simulator import FILES
from support.peers import unavailable
from support.venvs import REPOSITORY

TESTS = Path(__file__).parent
SOURCES = REPOSITORY / "sim"
COMPILE_LIMIT = 120.0  # seconds
RUN_LIMIT = 60.0
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror"]

# What the libraries, and the programs that use them, are compiled with.
VARIANTS = {
    "plain": [],
    "older": ["-DKVFERRY_SIM_OLDER_CANN", "-DKVFERRY_SIM_OLDER_CUDA"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


class Simulator:
    """Builds each variant of a library, and each program, when it is first used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def library(self, kind: str, variant: str) -> Path:
        made = self._folder / variant / FILES[kind]
        if not made.exists():
            self._need(variant)
            flags = {"CGO_CFLAGS": shlex.join(["-g", "-O2", *STRICT, *VARIANTS[variant]])}
            command = [sys.executable, str(REPOSITORY / "scripts" / "build_library.py"), kind, str(made)]
            checked(command, {**os.environ, **flags})
        return made

    def program(self, name: str, variant: str) -> Path:
        library = self.library("cuda" if name.startswith("cuda") else "npu", variant)
        made = library.with_name(name)
        if not made.exists():
            flags = ["-std=c99", "-D_GNU_SOURCE", *STRICT, *VARIANTS[variant], "-g", "-O1", f"-I{SOURCES}"]
            command = ["cc", *flags, str(TESTS / f"{name}.c"), str(library), "-pthread", "-o", str(made)]
            checked(command)
        return made

    def run(
        self, name: str, variant: str, *arguments: str, settings: Optional[Mapping[str, str]] = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with that variant of the library, and none of the simulator's variables but `settings`."""
        program = self.program(name, variant)
        env = {key: value for key, value in os.environ.items() if not key.startswith("KVFERRY_")}
        env.update(LD_LIBRARY_PATH=str(program.parent), **(settings or {}))
        return subprocess.run(
            [str(program), *arguments], env=env, capture_output=True, text=True, timeout=RUN_LIMIT, check=False
        )

    def _need(self, variant: str) -> None:
        """Skip the test where programs of that variant cannot be compiled, or do not run."""
        source = self._folder / "empty.c"
        source.write_text("int main(void) { return 0; }\n")
        program = self._folder / f"empty-{variant}"
        command = ["cc", *VARIANTS[variant], str(source), "-o", str(program)]
        for step in (command, [str(program)]):
            if subprocess.run(step, capture_output=True, timeout=COMPILE_LIMIT, check=False).returncode != 0:
                unavailable(f"`{shlex.join(step)}` fails: the C compiler has no such sanitizer here")


def checked(command: list[str], env: Optional[Mapping[str, str]] = None) -> str:
    """Run a command that must succeed and return what it printed."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMPILE_LIMIT, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    if shutil.which("cc") is None:
        unavailable("there is no cc")
    return Simulator(tmp_path_factory.mktemp("simulator"))
