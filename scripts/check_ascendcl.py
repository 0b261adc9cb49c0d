"""Compare ascend/acl.h with AscendCL's own headers, for both architectures: `python3 scripts/check_ascendcl.py`.

The headers are those in a wheel of torch-npu, which pip fetches once, 42 MB; only they are kept, in build/.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_library import MACHINES, REPOSITORY, zig

PACKAGE = "torch-npu==2.14.0"
PLATFORM = ["--platform", "manylinux_2_28_x86_64", "--python-version", "311", "--only-binary", ":all:"]
INSIDE = "torch_npu/include/third_party/acl/inc"
HEADERS = REPOSITORY / "build" / PACKAGE
SOURCE = "tests/project/ascendcl.cpp"


def main() -> int:
    if not HEADERS.exists():
        fetch(HEADERS)
    with tempfile.TemporaryDirectory() as scratch:
        for machine in MACHINES:
            compiler = zig(machine)
            if compiler is None:
                print("check_ascendcl.py: this takes the PyPI package ziglang", file=sys.stderr)
                return 1
            flags = ["-x", "c++", "-std=c++11", "-nostdinc++", "-Wall", "-Wextra", "-Werror", "-c", SOURCE]
            places = ["-isystem", str(HEADERS / INSIDE), "-o", f"{scratch}/{machine}.o"]
            if subprocess.run([*shlex.split(compiler), *flags, *places], cwd=REPOSITORY, check=False).returncode != 0:
                print(f"check_ascendcl.py: ascend/acl.h differs from AscendCL's headers on {machine}", file=sys.stderr)
                return 1
    return 0


def fetch(folder: Path) -> None:
    """Put the headers into the folder, in one step."""
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "headers"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *PLATFORM, "--dest", scratch, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(made, [name for name in archive.namelist() if name.startswith(f"{INSIDE}/acl/")])
        shutil.move(str(made), str(folder))


if __name__ == "__main__":
    sys.exit(main())
