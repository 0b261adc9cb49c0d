"""Run kvferry on aarch64 without such a machine: `python3 scripts/test_aarch64.py WHEEL`, the wheel for aarch64.

 1. the Go code: vet, with all tests compiled, and the tests of core, tcp and the simulated devices
 2. the C library: the examples, compiled against the library of the wheel
 3. the Python package: the README's example, and the demo

QEMU's user mode runs the programs (apt-get install qemu-user-static). zig compiles them; Python and the C library are
Debian's for arm64, which apt-get fetches into build/aarch64 without changing this system. It works on Debian 12 alone.

What this cannot show:

- QEMU's user mode passes system calls on to this system, and lacks some: process_vm_readv and userfaultfd. Tests that
  need them are left out or skip themselves. So engines on one host use sockets here.
- It is some ten times slower than the processor. Nothing here says how fast kvferry is on aarch64. Tests in which
  milliseconds count are left out: those of threads that look for an answer, and of engines that may not wait.
- Memory order is this processor's. A barrier that aarch64 needs and x86-64 does not would not be missed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_library
from build_library import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests"))

from support.readme import example

MACHINE = "aarch64"
FOLDER = REPOSITORY / "build" / MACHINE
ROOT, SITE, PROGRAMS = FOLDER / "root", FOLDER / "site", FOLDER / "bin"
PYTHON = PROGRAMS / "python3"
EMULATOR = ("qemu-aarch64-static", "-L", str(ROOT))
LIMIT = 600.0  # seconds that a program may take
TESTED = (
    "core/staging",
    "tcp/client",
    "tcp/server",
    "tcp",
    "cuda",
    "ascend",
    "tcp/sockio",
    "tcp/wire",
    "core",
    "core/hostmem",
    "core/shut",
)  # the longest first
FILES_LEFT_OUT = (
    # time: engines have a millisecond to end
    *("core/hang_test.go", "core/holders_test.go", "tcp/assist_test.go", "core/spin/spinner_test.go"),
    # copies between processes of one host
    *(
        "tcp/client/same_host_test.go",
        "tcp/client/short_test.go",
        "tcp/server/fetch_test.go",
        "tcp/server/stuck_test.go",
    ),
)
TESTS_LEFT_OUT = (
    # A slow sender has a whole piece fit into the socket's buffer now and then; the test wants one that does not.
    "FuzzSession",
    # a copy between processes of one host
    "TestPeersFindTheEndOfATargetWhoseSocketsAForkedChildHas/one_host",
    "TestIdleConnectionsOnOneHostLeaveDescriptorsForOthers",
    "TestRandomStridedRequestsMatchAModelOfMemory",
    "TestAPayloadForMemoryThatPeersMayOnlyReadIsNotFetched",
    "TestMemoryThatPeersMayOnlyWriteIsNotGranted",
    "TestAGrantEndsWithTheRegionThatPeersMayRead",
    "TestCountsAreExactAfterAKnownSeriesOfTransfers/host",
    # QEMU passes TCP_INFO on as a number.
    "TestBothSidesShowWhatTheKernelKnowsOfTheirConnections",
    "TestTheKernelIsNotAskedWhileACallMayWaitForAPage",
    # QEMU ignores the advice to bring memory in, and says that it was done.
    "TestMemoryThatCannotBeAccessedIsNotBroughtIn",
    "TestRandomRequestsMatchAModelOfMemory",
)


class Failure(Exception):
    """Something did not run as it should; the text is what it printed."""


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(SITE, ignore_errors=True)  # of another wheel
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        wheel.extractall(SITE)
    with ThreadPoolExecutor(2) as pool:
        downloads = pool.submit(timed, "Debian's Python and C library for arm64", system)
        try:
            timed("go vet, with all tests", vet)
            timed("compiling the Go tests and the examples", compile_programs)
            downloads.result()
            runs = [pool.submit(timed, f"Go tests of {package}", go_test, package) for package in TESTED]
            runs += [pool.submit(timed, f"example {path.name}", run_example, path) for path in examples()]
            runs.append(pool.submit(timed, "the README's example in Python", readme_example))
            runs.append(pool.submit(timed, "kvferry demo", python, "-m", "kvferry", "demo"))
            failures = [error for done in runs if (error := done.exception()) is not None]
        except Failure as error:
            failures = [error]
    for failure in failures:
        print(f"test_aarch64.py: {failure}", file=sys.stderr)
    return 1 if failures else 0


def timed(name: str, step: Callable[..., object], *arguments: object) -> None:
    """Do a step, and print how long it took when it has succeeded."""
    begin = time.monotonic()
    step(*arguments)
    print(f"aarch64: {name}: passed, {time.monotonic() - begin:.0f} s", flush=True)


def system() -> None:
    """Unpack Debian's packages for arm64 into ROOT, once."""
    if ROOT.exists():
        return
    state = FOLDER / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Acquire::Languages": "none",
        "Dir::Cache": str(state / "cache"),
        "Dir::State::lists": str(state / "lists"),
        "Dir::State::status": "/dev/null",  # as if nothing were installed
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    run([*apt, "update"])
    run([*apt, "install", "-y", "--no-install-recommends", "--download-only", "python3"])
    made = FOLDER / "root.new"
    made.mkdir(exist_ok=True)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        run(["dpkg", "-x", str(package), str(made)])
    made.rename(ROOT)


def vet() -> None:
    run(["go", "vet", "./..."], go_environment())


def compile_programs() -> None:
    for package in TESTED:
        program = go_script(package).with_suffix(".program")
        run(["go", "test", "-c", "-o", str(program), f"./{package}"], go_environment())
        write_script(go_script(package), program)
    soname = SITE / build_library.SONAME
    soname.unlink(missing_ok=True)
    soname.symlink_to("kvferry/_lib/libtransfer_engine.so")
    for path in examples():
        # zig cc compiles C++, too, and then links LLVM's library of it.
        compiler = shlex.split(compiler_command())
        language = ["-std=c++11", "-lc++"] if path.suffix == ".cpp" else ["-std=c99"]
        flags = [*language, "-O1", "-pthread", f"-I{REPOSITORY / 'capi' / 'include'}"]
        run([*compiler, *flags, str(path), str(soname), "-o", str(PROGRAMS / path.name)])
    write_script(PYTHON, ROOT / "usr/bin/python3")


def write_script(script: Path, program: Path) -> None:
    """Write a script that runs a program for aarch64.

    The program knows itself by the script's path. So it can start itself once more, which this system could not.
    """
    script.write_text(f'#!/bin/sh\nexec {shlex.join(EMULATOR)} -0 "$0" {shlex.quote(str(program))} "$@"\n')
    script.chmod(0o755)


def go_test(package: str) -> None:
    left_out = [*TESTS_LEFT_OUT]
    for name in FILES_LEFT_OUT:
        left_out += re.findall(r"^func (Test\w+)", (REPOSITORY / name).read_text(), re.MULTILINE)
    pattern = "|".join(f"^{name.replace('/', '$/^')}$" for name in left_out)
    # A test that hangs says where it does before the limit ends the program.
    limit = f"-test.timeout={LIMIT - 60:.0f}s"
    # Tests with simulated devices compile the simulator.
    compiler = {"CC": compiler_command()}
    run([str(go_script(package)), f"-test.skip={pattern}", limit], {**clean(), **compiler}, REPOSITORY / package)


def run_example(path: Path) -> None:
    output = run([*EMULATOR, str(PROGRAMS / path.name)], {**clean(), "LD_LIBRARY_PATH": str(SITE)}, FOLDER)
    if "every byte" not in output:
        raise Failure(f"{path.name} does not say that it has compared every byte")


def readme_example() -> None:
    python("-c", example("python"))


def python(*arguments: str) -> None:
    """Run the package in the wheel."""
    settings = {"PYTHONPATH": str(SITE), "PYTHONHOME": str(ROOT / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
    run([str(PYTHON), *arguments], {**clean(), **settings}, FOLDER)


def clean() -> dict[str, str]:
    """Return this program's environment without settings, and without CI, with which a test that skips itself fails."""
    ours = ("MC_", "KVFERRY_", "PYTHON")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours) and key != "CI"}


def run(command: list[str], env: Mapping[str, str] = os.environ, folder: Path = REPOSITORY) -> str:
    """Run a command that must succeed, and return what it printed."""
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(str(error)) from error
    if done.returncode != 0:
        raise Failure(f"{shlex.join(command)} failed ({done.returncode}):\n{done.stdout}")
    return done.stdout


def examples() -> list[Path]:
    return sorted((REPOSITORY / "capi" / "examples").glob("*.c*"))


def go_script(package: str) -> Path:
    return PROGRAMS / f"{package.replace('/', '-')}.test"


def compiler_command() -> str:
    command = build_library.zig(MACHINE)
    if command is None:
        raise Failure("this takes the PyPI package ziglang")
    return command


def go_environment() -> dict[str, str]:
    """Return the environment that the wheel's library is built in, so that nothing is compiled twice."""
    return build_library.go_environment(compiler_command(), "static", MACHINE)


if __name__ == "__main__":
    sys.exit(main())
