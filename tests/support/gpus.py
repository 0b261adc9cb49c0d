"""Memory of GPUs that programs have and kvferry.gpu does not make; needs kvferry."""

from __future__ import annotations

import contextlib
import functools
from ctypes import POINTER, Structure, byref, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

from kvferry._device import Memory, Runtime
from kvferry._managed import Managed
from kvferry.gpu import GpuError

# Values of cuda.h.
ATTACH_GLOBAL = 1
DEVICE_PLACE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
PINNED_PIECE = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
READ_WRITE = 3

PIECES = 3
GRANULE = 2 << 20  # bytes; what pieces are a multiple of on every GPU


class _Location(Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _Properties(Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", c_int),
        ("handles", c_int),
        ("location", _Location),
        ("windows", c_void_p),
        ("flags", c_ubyte * 8),
    ]


class _Access(Structure):
    _fields_ = [("location", _Location), ("flags", c_int)]


_PROTOTYPES: dict[str, list[Any]] = {
    "cuMemAddressReserve": [POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64],
    "cuMemAddressFree": [c_uint64, c_size_t],
    "cuMemCreate": [POINTER(c_uint64), c_size_t, POINTER(_Properties), c_uint64],
    "cuMemRelease": [c_uint64],
    "cuMemMap": [c_uint64, c_size_t, c_size_t, c_uint64, c_uint64],
    "cuMemUnmap": [c_uint64, c_size_t],
    "cuMemSetAccess": [c_uint64, c_size_t, POINTER(_Access), c_size_t],
    "cuMemAllocManaged": [POINTER(c_void_p), c_size_t, c_uint],
}


def _declare(cuda: Runtime) -> None:
    for name, parameters in _PROTOTYPES.items():
        function = getattr(cuda.library, name)
        function.restype, function.argtypes = c_int, parameters


def managed_memory(cuda: Runtime, size: int, device: int) -> Memory:
    """Memory that CUDA moves between a GPU and the host."""
    _declare(cuda)
    return Memory(
        cuda, size, device, lambda out: cuda.call("cuMemAllocManaged", out, size, ATTACH_GLOBAL), "cuMemFree_v2"
    )


class VirtualMemory(Memory):
    """PIECES of a GPU's memory at one range of addresses, as PyTorch's expandable segments are.

    The size is the one asked for; the range is longer, by what makes its pieces as long as they must be.
    """

    def __init__(self, cuda: Runtime, size: int, device: int) -> None:
        _declare(cuda)
        self.size = size
        self.device = device
        self._runtime = cuda
        self._piece = -(-size // (PIECES * GRANULE)) * GRANULE
        address = c_uint64()
        with cuda.on(device):
            cuda.call("cuMemAddressReserve", byref(address), PIECES * self._piece, 0, 0, 0)
            for i in range(PIECES):
                self._map(address.value + i * self._piece)
            place = _Access(_Location(DEVICE_PLACE, device), READ_WRITE)
            cuda.call("cuMemSetAccess", address, PIECES * self._piece, byref(place), 1)
        self.address = address.value
        Managed.__init__(self, functools.partial(_unmap, cuda, device, self._piece, self.address))

    def _map(self, address: int) -> None:
        """Have a piece of its own at an address. It goes when it is unmapped."""
        handle = c_uint64()
        properties = _Properties(type=PINNED_PIECE, location=_Location(DEVICE_PLACE, self.device))
        self._runtime.call("cuMemCreate", byref(handle), self._piece, byref(properties), 0)
        self._runtime.call("cuMemMap", address, self._piece, 0, handle, 0)
        self._runtime.call("cuMemRelease", handle)


def _unmap(cuda: Runtime, device: int, piece: int, address: int) -> None:
    """Do its best, as whatever gives memory back."""
    steps = [("cuMemUnmap", address + i * piece, piece) for i in range(PIECES)]
    with contextlib.suppress(GpuError), cuda.on(device):
        for step in (*steps, ("cuMemAddressFree", address, PIECES * piece)):
            with contextlib.suppress(GpuError):
                cuda.call(*step)
