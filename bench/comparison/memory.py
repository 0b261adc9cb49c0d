"""Memory that blocks are moved from and to: the host's, or a GPU's, over the CUDA driver. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from ctypes import byref, c_int, c_size_t, c_ubyte, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Union


class HostMemory:
    """Memory of this process."""

    on_host = True

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self._view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def touch(self, size: int) -> None:
        """Have the first so many bytes there."""
        ctypes.memset(self.address, 7, size)

    @contextlib.contextmanager
    def rewritten(self, size: int) -> Iterator[memoryview]:
        """The first so many bytes, to be changed within the block."""
        yield self._view[:size]

    def read(self, size: int) -> memoryview:
        """The first so many bytes."""
        return self._view[:size]

    def taken(self) -> int:
        """Bytes of a device that are in use, by whatever process."""
        return 0


class GpuMemory:
    """Memory of a GPU. The thread that makes it has the GPU's primary context current from then on, as with PyTorch."""

    on_host = False

    def __init__(self, size: int, device: int) -> None:
        self._cuda = ctypes.CDLL(os.environ.get("KVFERRY_CUDA") or "libcuda.so.1")
        context, address, which = c_void_p(), c_uint64(), c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", byref(which), c_int(device))
        self._call("cuDevicePrimaryCtxRetain", byref(context), which)
        self._call("cuCtxSetCurrent", context)
        self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
        self.address = address.value

    def _call(self, function: str, *arguments: Any) -> None:
        if (code := getattr(self._cuda, function)(*arguments)) != 0:
            raise RuntimeError(f"{function} failed with {code}")

    def touch(self, size: int) -> None:
        self._call("cuMemsetD8_v2", c_uint64(self.address), c_ubyte(7), c_size_t(size))
        self._call("cuCtxSynchronize")

    @contextlib.contextmanager
    def rewritten(self, size: int) -> Iterator[memoryview]:
        """The first so many bytes, to be changed within the block: they are on the host meanwhile."""
        data = self._fetched(size)
        yield memoryview(data).cast("B")
        self._call("cuMemcpyHtoD_v2", c_uint64(self.address), data, c_size_t(size))
        self._call("cuCtxSynchronize")  # small copies may be under way when they return

    def read(self, size: int) -> memoryview:
        """The first so many bytes, as they are now."""
        return memoryview(self._fetched(size)).cast("B")

    def _fetched(self, size: int) -> ctypes.Array[ctypes.c_char]:
        data = (ctypes.c_char * size)()
        self._call("cuMemcpyDtoH_v2", data, c_uint64(self.address), c_size_t(size))
        return data

    def taken(self) -> int:
        if not hasattr(self._cuda, "cuMemGetInfo_v2"):  # as of simulated GPUs
            return 0
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return total.value - free.value


Memory = Union[HostMemory, GpuMemory]


def allocate(place: str, size: int) -> Memory:
    """So many bytes at "host", or at "cuda:0" and so on."""
    return HostMemory(size) if place == "host" else GpuMemory(size, int(place.removeprefix("cuda:")))


def peak() -> int:
    """The most resident memory that this process ever had, page-locked memory of a driver among it, in bytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
