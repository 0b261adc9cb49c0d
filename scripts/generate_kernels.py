"""Compile cuda/kernels.cu to cuda/kernels.ptx: `python3 scripts/generate_kernels.py [--check]`.

It needs NVRTC, the compiler of the PyPI package nvidia-cuda-nvrtc-cu12 (12.x: later ones no longer compile for sm_70),
and no GPU: `make generate-kernels` installs it. With --check it compiles nothing, and only compares the hash of the
sources that stands in kernels.ptx.

The PTX is for sm_70, and any later GPU takes it. Its version of the language is set to 6.3, which drivers know since
CUDA 10.0: the kernels use nothing newer. The driver compiles PTX for its GPU when it loads it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "cuda"
SOURCES = (FOLDER / "kernels.cu", FOLDER / "kernels.h")
OUTPUT = FOLDER / "kernels.ptx"
LANGUAGE = "6.3"
OPTIONS = (b"--gpu-architecture=compute_70", b"--std=c++11", b"--device-as-default-execution-space")


class CompileError(Exception):
    """The kernels cannot be compiled; the text says why."""


def hash_of_sources() -> str:
    return hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()


def mark() -> str:
    """Return what kernels.h calls the kernels."""
    match = re.search(r'^#define KERNELS_MARK "(.*)"$', SOURCES[1].read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise CompileError(f"{SOURCES[1]} has no KERNELS_MARK")
    return match.group(1)


def nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        library = Path(folder) / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
        if library.is_file():
            return ctypes.CDLL(str(library))
    raise CompileError(f"there is no NVRTC: `{sys.executable} -m pip install nvidia-cuda-nvrtc-cu12`")


def compiled() -> str:
    """Return the PTX as the compiler writes it."""
    library, program = nvrtc(), ctypes.c_void_p()
    source, header = (path.read_bytes() for path in SOURCES)
    headers = (ctypes.c_char_p * 2)(header.replace(b"#include <stdint.h>", b""), b"")
    names = (ctypes.c_char_p * 2)(b"kernels.h", b"stdint.h")
    created = library.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 2, headers, names)
    if created != 0:
        raise CompileError(f"nvrtcCreateProgram failed with {created}")
    options = (ctypes.c_char_p * len(OPTIONS))(*OPTIONS)
    if library.nvrtcCompileProgram(program, len(OPTIONS), options) != 0:
        raise CompileError(text_of(library, program, "ProgramLog"))
    return text_of(library, program, "PTX")


def text_of(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    library[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library[f"nvrtcGet{what}"](program, text)
    return text.value.decode()


def generate() -> str:
    """Return the content of kernels.ptx."""
    body = re.sub(r"^\.version .*$", f".version {LANGUAGE}", compiled(), flags=re.MULTILINE)
    body = re.sub(r"^//.*\n", "", body, flags=re.MULTILINE).strip()
    return (
        f"// {mark()}\n// Made by scripts/generate_kernels.py of kernels.cu and kernels.h. Not to be edited.\n"
        f"// sources: {hash_of_sources()}\n\n{body}\n"
    )


def main() -> int:
    try:
        if sys.argv[1:] == ["--check"]:
            if f"// sources: {hash_of_sources()}\n" not in OUTPUT.read_text(encoding="utf-8"):
                raise CompileError("cuda/kernels.ptx was not made of these sources: `make generate-kernels`")
        else:
            OUTPUT.write_text(generate(), encoding="utf-8")
    except CompileError as error:
        print(f"generate_kernels.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
