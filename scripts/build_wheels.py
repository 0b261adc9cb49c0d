"""Build the wheels for PyPI, one for each architecture, and check them: `python3 scripts/build_wheels.py FOLDER`.

This interpreter must have scripts/wheel-requirements.txt. With the same versions of Go and of these, the same commit
gives the same bytes in every folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

from build_library import MACHINES, PORTABLE, REPOSITORY, BuildError, find_go, missing
from go_modules import NOTICES

ELF_MACHINES = {"x86_64": "x64", "aarch64": "AArch64"}  # as pyelftools calls them
LIBRARIES = {f"kvferry/_lib/{name}" for name in ("libtransfer_engine.so", "sim/libascendcl.so", "sim/libcuda.so.1")}


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for machine in MACHINES:
            wheel = build_wheel(machine, Path(sys.argv[1]).absolute())
            check(wheel, machine)
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    except BuildError as error:
        print(f"kvferry: {error}", file=sys.stderr)
        return 1
    return 0


def build_wheel(machine: str, folder: Path) -> Path:
    """Build the wheel for that machine into the folder, instead of one that is there."""
    if find_go() is None:
        raise missing("Go")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        platform = f"--config-settings=--build-option=--plat-name={PORTABLE}_{machine}"
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", platform, "--wheel-dir", made]
        env = {**os.environ, "SOURCE_DATE_EPOCH": source_date()}
        if (
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", *options, "."], cwd=REPOSITORY, env=env, check=False
            ).returncode
            != 0
        ):
            raise BuildError(f"pip could not build the wheel for {machine}")
        (wheel,) = Path(made).glob("*.whl")
        return wheel.replace(folder / wheel.name)


def source_date() -> str:
    """Return $SOURCE_DATE_EPOCH, or the time of the commit: the time that the wheel's files get, in seconds."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError("there is no commit whose time the wheel's files could have: set SOURCE_DATE_EPOCH")
    return done.stdout.strip()


def check(wheel: Path, machine: str) -> None:
    """Fail unless the wheel is what PyPI and its users expect."""
    tag = f"{PORTABLE}_{machine}"
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = " ".join(done.stdout.split())
    if done.returncode != 0 or not re.search(rf'platform tag: "manylinux_2_(5|12|17)_{machine}"', said):
        raise BuildError(f"auditwheel does not find {wheel.name} to be {tag}:\n{done.stdout}{done.stderr}")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        lacking = LIBRARIES - names
        if lacking:
            raise BuildError(f"{wheel.name} lacks {', '.join(sorted(lacking))}")
        for name in ("LICENSE", NOTICES.name):
            if not any(path.endswith(f".dist-info/licenses/{name}") for path in names):
                raise BuildError(f"{wheel.name} lacks {name}")
        for name in sorted(LIBRARIES):
            check_library(name, archive, machine)


def check_library(name: str, archive: zipfile.ZipFile, machine: str) -> None:
    content = archive.read(name)
    for path in (REPOSITORY, Path.home(), sys.prefix):
        if f"{path}/".encode() in content:
            raise BuildError(f"{name} names a folder of this machine: {path}")
    with archive.open(name) as file:
        library = ELFFile(file)
        if library.get_machine_arch() != ELF_MACHINES[machine]:
            raise BuildError(f"{name} is for {library.get_machine_arch()}, not for {machine}")
        left = [section.name for section in library.iter_sections() if re.match(r"\.symtab|\.debug", section.name)]
        if left:
            raise BuildError(f"{name} is not stripped: it has {', '.join(left)}")


if __name__ == "__main__":
    sys.exit(main())
