"""Let the PyTorch of PyPI, which is built for CUDA, be imported without the two gigabytes of NVIDIA's libraries.

    python cudaless.py FOLDER    # the folder `torch` of an installation

For each library that is missing one of the same name goes into its folder `lib`, with the functions that PyTorch looks
for. They answer as CUDA does where there is no device. libcuda.so.1, by which kvferry knows that there is a GPU, is not
among them: PyTorch opens it on first use of a GPU only.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

LAZY = "libcaffe2_nvrtc.so"  # the one library of PyTorch that needs libcuda.so.1, opened on first use of a GPU
NVIDIA = re.compile(r"lib(cu|nccl|nv)[^/]*\.so\.\d+")
FUNCTION = re.compile(r"_*(cu|nccl|nv)\w+")

ANSWERS = """
const char *cudaGetErrorString(int error) { (void)error; return "there is no CUDA here, but a stand-in for it"; }
const char *cudaGetErrorName(int error) { return cudaGetErrorString(error); }
long no_device(void) { return 100; /* cudaErrorNoDevice */ }
"""


class Wants:
    """What PyTorch's libraries want of others."""

    def __init__(self, folder: Path) -> None:
        self.libraries: set[str] = set()
        self.functions: set[str] = set()
        self.versions: dict[str, set[str]] = defaultdict(set)  # the versions of symbols that a library has to define
        self.versioned: dict[str, set[str]] = defaultdict(set)  # the functions of a version
        for library in folder.glob("lib*.so*"):
            if library.name != LAZY:
                self._add(library)

    def _add(self, library: Path) -> None:
        command = ["readelf", "--wide", "--dynamic", "--dyn-syms", "--version-info", str(library)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        file = ""
        for line in lines:
            fields = line.split()
            if "(NEEDED)" in line:
                self.libraries.add(fields[-1].strip("[]"))
            elif fields[4:7:2] == ["GLOBAL", "UND"] and FUNCTION.fullmatch(name := fields[7].split("@")[0]):
                self.functions.add(name)
                if "@" in fields[7]:
                    self.versioned[fields[7].split("@")[1]].add(name)
            elif "File:" in fields:
                file = fields[fields.index("File:") + 1]
            elif "Name:" in fields and file:
                self.versions[file].add(fields[fields.index("Name:") + 1])


def stand_in(folder: Path) -> None:
    """Make the libraries that are missing in PyTorch's folder of libraries."""
    wants = Wants(folder)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "functions.c"), Path(scratch, "versions.map")
        source.write_text(source_of(wants.functions))
        for name in filter(NVIDIA.fullmatch, wants.libraries):
            if (folder / name).exists():
                continue
            script.write_text(
                "".join(version(v, wants.versioned[v]) for v in wants.versions[name]) or "{ global: *; };"
            )
            linker = f"-Wl,-soname,{name},--version-script={script}"
            subprocess.run([*compiler, "-shared", "-fPIC", "-w", linker, "-o", folder / name, source], check=True)


def source_of(functions: Collection[str]) -> str:
    others = sorted(name for name in functions if f" *{name}(" not in ANSWERS)
    return ANSWERS + "".join(f'long {name}(void) __attribute__((alias("no_device")));\n' for name in others)


def version(name: str, functions: Collection[str]) -> str:
    return f"{name} {{ global: {' '.join(f'{f};' for f in sorted(functions))} }};\n"


if __name__ == "__main__":
    stand_in(Path(sys.argv[1], "lib"))
