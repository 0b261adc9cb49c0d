"""The library as it is installed for C programs, and a way to compile and run programs against it."""

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

from support import paths
from support.peers import unavailable
from support.venvs import REPOSITORY

TESTS = Path(__file__).parent
BUILD_LIMIT = 600.0  # seconds
COMPILE_LIMIT = 120.0
RUN_LIMIT = 150.0
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
SANITIZER = "-fsanitize=address"


class Installed:
    """A copy made by `make install`. Programs find it by pkg-config alone.

    Programs are linked with one of three kinds of the library: "shared", "static", or "sanitized", a static one that is
    built with the address sanitizer, which also reports leaks of C memory when a program ends.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.lib = prefix / "lib"
        self.include = prefix / "include"
        self._built = prefix / "bin"
        self._built.mkdir()

    def flags(self, *arguments: str) -> list[str]:
        """Return what pkg-config answers about the installed copy."""
        env = {**os.environ, "PKG_CONFIG_PATH": str(self.lib / "pkgconfig")}
        return shlex.split(checked(["pkg-config", *arguments, "transfer_engine"], COMPILE_LIMIT, env))

    def compile(self, source: Path, kind: str = "shared") -> Path:
        """Compile and link a C or C++ program, with every warning an error."""
        program = self._built / f"{source.stem}-{source.suffix[1:]}-{kind}"
        if not program.exists():
            compiler = ["c++", "-std=c++11"] if source.suffix == ".cpp" else ["cc", "-std=c99", "-D_GNU_SOURCE"]
            command = [*compiler, *STRICT, "-g", f"-I{TESTS}", *self.flags("--cflags"), str(source)]
            checked([*command, *self._library(kind), "-pthread", "-ldl", "-o", str(program)], COMPILE_LIMIT)
        return program

    def _library(self, kind: str) -> list[str]:
        if kind == "shared":
            return self.flags("--libs")
        private = [flag for flag in self.flags("--static", "--libs") if flag != "-ltransfer_engine"]
        if kind == "static":
            return [str(self.lib / "libtransfer_engine.a"), "-lmooncake_common", "-lbase", "-lasio", *private]
        return [SANITIZER, str(self._sanitized()), *private]

    def _sanitized(self) -> Path:
        library = self.prefix / "sanitized" / "libtransfer_engine.a"
        if not library.exists():
            need_sanitizer(self._built)
            build = ["go", "build", "-asan", "-buildmode=c-archive", "-o", str(library), "./capi"]
            checked(build, BUILD_LIMIT, {**os.environ, "CGO_ENABLED": "1"})
        return library

    def run(
        self, program: Path, *arguments: str, settings: Optional[Mapping[str, str]] = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with the installed library and, of the variables that engines look at, only that of the path
        and `settings`."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MC_", "KVFERRY_", "ASCEND_"))}
        path = {paths.VARIABLE: os.environ[paths.VARIABLE]}
        return subprocess.run(
            [str(program), *arguments],
            env={**env, **path, "LD_LIBRARY_PATH": str(self.lib), **(settings or {})},
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT,
        )


def checked(command: list[str], limit: float, env: Mapping[str, str] = os.environ) -> str:
    """Run a command that must succeed, in the repository, and return what it printed."""
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def need_sanitizer(folder: Path) -> None:
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = ["cc", SANITIZER, str(source), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True, timeout=COMPILE_LIMIT).returncode != 0:
        unavailable(f"the C compiler has no {SANITIZER}")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    for tool in ("cc", "c++", "make", "pkg-config", "go"):
        if shutil.which(tool) is None:
            unavailable(f"there is no {tool}")
    prefix = tmp_path_factory.mktemp("installed")
    checked(["make", "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}"], BUILD_LIMIT)
    return Installed(prefix)
