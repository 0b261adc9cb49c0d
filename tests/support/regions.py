"""Memory of each kind that an engine moves bytes between; needs Python 3.9, and kvferry for what is not plain."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Callable, Protocol

from . import runtimes, tensors
from .absent import AbsentRegion
from .mapped import MappedRegion

MAP_NORESERVE = 0x4000  # of Linux on x86_64 and aarch64; older Pythons have no name for it
MAP_FIXED_NOREPLACE = 0x100000  # likewise


class Region(Protocol):
    """Some memory of this process."""

    size: int
    address: int

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def free(self) -> None: ...


class HostRegion(MappedRegion):
    """Memory of the host. What was never written takes none."""

    def __init__(self, size: int) -> None:
        super().__init__(size, MAP_NORESERVE)


class PlacedRegion:
    """Memory of the host at an address, where nothing else may be: as device memory lies at the same addresses in every
    process of a node."""

    def __init__(self, size: int, address: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        found = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found != address:
            raise MemoryError(f"nothing can be mapped at {address:#x}: error {ctypes.get_errno()}")
        self.size = size
        self.address = address

    def read(self, offset: int, length: int) -> bytes:
        return ctypes.string_at(self.address + offset, min(length, self.size - offset))

    def write(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self.address + offset, data, len(data))

    def free(self) -> None:
        unmap = ctypes.CDLL(None).munmap
        unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        unmap(self.address, self.size)


class DeviceRegion:
    """Memory of a device, as kvferry's Memory has it."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.size: int = memory.size
        self.address: int = memory.address

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._memory.read(min(length, self.size - offset), offset))

    def write(self, offset: int, data: bytes) -> None:
        self._memory.write(data, offset)

    def free(self) -> None:
        self._memory.close()


class PinnedRegion:
    """Host memory that a runtime page-locked."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.size: int = memory.size
        self.address: int = memory.address
        self._view = memoryview((ctypes.c_char * self.size).from_address(self.address)).cast("B")

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._view[offset : offset + len(data)] = data

    def free(self) -> None:
        self._memory.close()


def make_region(size: int, place: str) -> Region:
    """Make memory at a place: "host"; "absent", of which absent.py tells; "at" with an address of the process behind
    it, as "at:0x600000000000"; one of PLACES with the number of a device behind it, as "npu:0", where it is the
    last one's if there are not so many; or a tensor, see tensors.py."""
    if place == "host":
        return HostRegion(size)
    if place == "absent":
        return AbsentRegion(size)
    kind, device = place.split(":")
    if kind == "at":
        return PlacedRegion(size, int(device, 0))
    if kind == tensors.KIND:
        return tensors.TensorRegion(size, device)
    last = runtimes.runtime("npu" if kind.startswith("npu") else "cuda").devices() - 1
    return PLACES[kind](size, min(int(device), last))


def virtual(size: int, device: int) -> Region:
    """Memory of a GPU that lies in several pieces, as PyTorch's expandable segments do."""
    from .gpus import VirtualMemory

    return DeviceRegion(VirtualMemory(runtimes.runtime("cuda"), size, device))


def managed(size: int, device: int) -> Region:
    """Memory that CUDA moves between a GPU and the host."""
    from .gpus import managed_memory

    return DeviceRegion(managed_memory(runtimes.runtime("cuda"), size, device))


PLACES: dict[str, Callable[[int, int], Region]] = {
    "npu": lambda size, device: DeviceRegion(runtimes.runtime("npu").allocate(size, device)),
    "cuda": lambda size, device: DeviceRegion(runtimes.runtime("cuda").allocate(size, device)),
    "npu-pinned": lambda size, device: PinnedRegion(runtimes.runtime("npu").allocate_pinned(size, device)),
    "cuda-pinned": lambda size, device: PinnedRegion(runtimes.runtime("cuda").allocate_pinned(size, device)),
    "managed": managed,
    "virtual": virtual,
}
