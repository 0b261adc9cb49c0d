"""Memory of Ascend NPUs, for programs that show, test or measure transfers: allocate it, write to it, read it back.

    npus = AscendCL()
    cache = npus.allocate(1 << 20, device=0)
    cache.write(b"KV cache")
    engine.register_memory(cache.address, cache.size)  # like any other memory

It calls AscendCL, through the same library file that the engine opens. The engine needs none of this: device memory of
any program, torch's for example, is registered by its address.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from ctypes import byref, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from kvferry._device import DeviceError, Memory, PinnedMemory, Runtime
from kvferry._ffi import python_string
from kvferry._managed import Managed

__all__ = ["AscendCL", "Memory", "NpuError", "PinnedMemory"]

VARIABLE = "KVFERRY_ASCENDCL"
TOOLKITS = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")  # variables that CANN's set_env.sh sets
FILE = "libascendcl.so"

# Values of acl/acl_base.h and acl/acl_rt.h.
ALREADY_INITIALIZED = 100002
HUGE_PAGES_FIRST = 0
HOST_TO_DEVICE = 1
DEVICE_TO_HOST = 2

_PROTOTYPES: dict[str, list[Any]] = {
    "aclInit": [ctypes.c_char_p],
    "aclrtGetDeviceCount": [ctypes.POINTER(c_uint32)],
    "aclrtGetDevice": [ctypes.POINTER(c_int32)],
    "aclrtSetDevice": [c_int32],
    "aclrtResetDevice": [c_int32],
    "aclrtMalloc": [ctypes.POINTER(c_void_p), c_size_t, c_int],
    "aclrtFree": [c_void_p],
    "aclrtMallocHost": [ctypes.POINTER(c_void_p), c_size_t],
    "aclrtFreeHost": [c_void_p],
    "aclGetRecentErrMsg": [],
    "aclrtMemcpy": [c_void_p, c_size_t, c_void_p, c_size_t, c_int],
}


class NpuError(DeviceError):
    """AscendCL cannot be opened, or one of its calls failed; the text says which, and why."""


class AscendCL(Runtime):
    """One AscendCL library, opened and initialized. Any thread may call it.

    AscendCL has a current device for each thread. A call for a device makes it the calling thread's current one, and it
    stays so.
    """

    title = "AscendCL"
    location = "npu"
    error = NpuError

    def __init__(self, file: str | None = None) -> None:
        """Open that file, or the one that KVFERRY_ASCENDCL names, or else the one that the loader or the toolkit's
        variables find. NpuError lists the files that were tried."""
        super().__init__([file] if file else _files(), _PROTOTYPES)
        self._lock = threading.Lock()
        self._sets: dict[int, int] = {}  # how often each device was made the current one of a thread
        self.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        if (code := self.library.aclInit(None)) not in (0, ALREADY_INITIALIZED):
            raise self.failure("aclInit", code)
        Managed.__init__(self, functools.partial(_reset, self.library, self._sets))

    def devices(self) -> int:
        count = c_uint32()
        self.call("aclrtGetDeviceCount", byref(count))
        return count.value

    def allocate(self, size: int, device: int = 0) -> Memory:
        return Memory(
            self, size, device, lambda out: self.call("aclrtMalloc", out, size, HUGE_PAGES_FIRST), "aclrtFree"
        )

    def allocate_pinned(self, size: int, device: int = 0) -> PinnedMemory:
        return PinnedMemory(self, size, device, lambda out: self.call("aclrtMallocHost", out, size), "aclrtFreeHost")

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a device the calling thread's current one."""
        current = c_int32()
        if self.library.aclrtGetDevice(byref(current)) != 0 or current.value != device:
            self.call("aclrtSetDevice", device)
            with self._lock:
                self._sets[device] = self._sets.get(device, 0) + 1
        yield

    def reason(self, code: int) -> str:
        text = " ".join(python_string(self.library.aclGetRecentErrMsg()).split())
        return f": {text}" if text else ""

    def copy_in(self, destination: int, source: int, length: int) -> None:
        self.call("aclrtMemcpy", destination, length, source, length, HOST_TO_DEVICE)

    def copy_out(self, destination: int, source: int, length: int) -> None:
        self.call("aclrtMemcpy", destination, length, source, length, DEVICE_TO_HOST)


def _reset(library: ctypes.CDLL, sets: dict[int, int]) -> None:
    for device, count in sets.items():
        for _ in range(count):
            library.aclrtResetDevice(device)


def _files() -> list[str]:
    """The files that the engine tries, in its order."""
    named = os.environ.get(VARIABLE)
    if named:
        return [named]
    homes = [os.environ[variable] for variable in TOOLKITS if os.environ.get(variable)]
    return [FILE, *(str(Path(home) / "lib64" / FILE) for home in homes)]
