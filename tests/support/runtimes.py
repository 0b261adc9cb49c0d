"""The runtimes of NPUs and GPUs in a peer: the simulator's, or those of real devices.

It runs in the peers, and needs Python 3.9; what it makes needs kvferry. KVFERRY_TESTS_ASCENDCL and KVFERRY_TESTS_CUDA
name the libraries, which are the ones that the peers' engines are to find: of a library that is loaded twice there is
one in a process, and so are its devices.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvferry._device import Runtime

VARIABLES = {"npu": "KVFERRY_TESTS_ASCENDCL", "cuda": "KVFERRY_TESTS_CUDA"}


@functools.cache
def runtime(kind: str) -> Runtime:
    """The runtime of "npu" or "cuda", opened on first use. Any thread may use it."""
    made = open_runtime(kind, os.environ[VARIABLES[kind]])
    _opened.append(made)
    return made


_opened: list[Any] = []


def open_runtime(kind: str, library: str) -> Runtime:
    from kvferry.gpu import CUDA
    from kvferry.npu import AscendCL

    return AscendCL(library) if kind == "npu" else CUDA(library)


def close() -> None:
    """Let go of every device; their memory must have been freed."""
    while _opened:
        _opened.pop().close()
    runtime.cache_clear()


class Simulator:
    """The controls of the simulated devices of one kind of this process; see sim/kvferry_sim.h."""

    def __init__(self, kind: str) -> None:
        self._library = runtime(kind).library
        self._library.kvferry_sim_report.restype = ctypes.c_size_t

    def faults(self, spec: str) -> None:
        """Set the faults that will happen, "" for none, and count calls from 1 again."""
        if self._library.kvferry_sim_faults(spec.encode()) != 0:
            raise ValueError(f"the simulator does not understand the faults {spec!r}")

    def release_hangs(self) -> None:
        """Let the operations that hang go on."""
        self._library.kvferry_sim_release_hangs()

    def reset_counters(self) -> None:
        self._library.kvferry_sim_reset_counters()

    def report(self) -> dict[str, Any]:
        """Return what was called and what is allocated."""
        size = self._library.kvferry_sim_report(None, ctypes.c_size_t(0)) + 4096
        text = ctypes.create_string_buffer(size)
        self._library.kvferry_sim_report(text, ctypes.c_size_t(size))
        found: dict[str, Any] = json.loads(text.value)
        return found
