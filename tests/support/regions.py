"""Memory of each kind that an engine moves bytes between; needs Python 3.9 and no packages."""

from __future__ import annotations

import ctypes
import mmap
from typing import Union

from . import npu

MAP_NORESERVE = 0x4000  # of Linux on x86_64 and aarch64; older Pythons have no name for it


class HostRegion:
    """Memory of this process. What was never written takes none."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def free(self) -> None:
        self._map.close()


class NPURegion:
    """Memory of a simulated or real NPU."""

    def __init__(self, size: int, device: int) -> None:
        self._device = npu.runtime().device(device)
        self.size = size
        self.address = self._device.allocate(size)

    def read(self, offset: int, length: int) -> bytes:
        return self._device.read(self.address + offset, min(length, self.size - offset))

    def write(self, offset: int, data: bytes) -> None:
        self._device.write(self.address + offset, data)

    def free(self) -> None:
        self._device.free(self.address)


class PinnedRegion:
    """Host memory that AscendCL page-locked, for device 0."""

    def __init__(self, size: int) -> None:
        self._device = npu.runtime().device(0)
        self.size = size
        self.address = self._device.allocate_pinned(size)
        self._view = memoryview((ctypes.c_char * size).from_address(self.address)).cast("B")

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._view[offset : offset + len(data)] = data

    def free(self) -> None:
        self._device.free_pinned(self.address)


Region = Union[HostRegion, NPURegion, PinnedRegion]


def make_region(size: int, place: str) -> Region:
    """Make memory at "host", "pinned", or a device: "npu:0" and so on."""
    if place == "host":
        return HostRegion(size)
    if place == "pinned":
        return PinnedRegion(size)
    return NPURegion(size, int(place.removeprefix("npu:")))
