"""Memory of NVIDIA GPUs, for programs that show, test or measure transfers: allocate it, write to it, read it back.

    gpus = CUDA()
    cache = gpus.allocate(1 << 20, device=0)
    cache.write(b"KV cache")
    engine.register_memory(cache.address, cache.size)  # like any other memory

It calls CUDA's driver API, through the same library file that the engine opens. The engine needs none of this: device
memory of any program, torch's for example, is registered by its address.

visible_devices() and available() find GPUs without using them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from kvferry._device import DeviceError, Memory, PinnedMemory, Runtime, open_library
from kvferry._ffi import python_string
from kvferry._managed import Managed

__all__ = ["CUDA", "GpuError", "Memory", "PinnedMemory", "available", "visible_devices"]

VARIABLE = "KVFERRY_CUDA"
FILE = "libcuda.so.1"
NODES = Path("/dev")  # where the kernel's driver has a node for each GPU: nvidia0 and so on

# Values of cuda.h.
SUCCESS = 0
PORTABLE = 1  # page-locked memory: for all contexts

_PROTOTYPES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuGetErrorName": [c_int, ctypes.POINTER(c_char_p)],
    "cuGetErrorString": [c_int, ctypes.POINTER(c_char_p)],
    "cuDeviceGetCount": [ctypes.POINTER(c_int)],
    "cuDeviceGet": [ctypes.POINTER(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(c_void_p), c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [ctypes.POINTER(c_void_p)],
    "cuMemAlloc_v2": [ctypes.POINTER(c_void_p), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemHostAlloc": [ctypes.POINTER(c_void_p), c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemcpyHtoD_v2": [c_uint64, c_void_p, c_size_t],
    "cuMemcpyDtoH_v2": [c_void_p, c_uint64, c_size_t],
    "cuStreamSynchronize": [c_void_p],
}


class GpuError(DeviceError):
    """CUDA cannot be opened, or one of its calls failed; the text says which, and why."""


class CUDA(Runtime):
    """One library of CUDA's driver, opened and initialized. Any thread may call it.

    A call for a GPU uses the GPU's primary context, which other parts of the program, such as torch, use, too. The
    context is the calling thread's current one during the call. After the call the former one is current again.
    """

    title = "CUDA's driver"
    location = "cuda"
    error = GpuError

    def __init__(self, file: str | None = None) -> None:
        """Open that file, or the one that KVFERRY_CUDA names, or else the one that the loader finds. GpuError says
        why that fails."""
        super().__init__([file or os.environ.get(VARIABLE) or FILE], _PROTOTYPES)
        self.call("cuInit", 0)
        self._lock = threading.Lock()
        self._contexts: dict[int, c_void_p] = {}  # the primary one of each device that was used
        Managed.__init__(self, functools.partial(_release, self.library, self._contexts))

    def devices(self) -> int:
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def name(self, device: int) -> str:
        """The name that the driver has for a GPU."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self._handle(device))
        return python_string(text.value)

    def allocate(self, size: int, device: int = 0) -> Memory:
        return Memory(self, size, device, lambda out: self.call("cuMemAlloc_v2", out, size), "cuMemFree_v2")

    def allocate_pinned(self, size: int, device: int = 0) -> PinnedMemory:
        return PinnedMemory(
            self, size, device, lambda out: self.call("cuMemHostAlloc", out, size, PORTABLE), "cuMemFreeHost"
        )

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Within this, the device's primary context is the calling thread's current one. The former one comes back."""
        self.call("cuCtxPushCurrent_v2", self._context(device))
        try:
            yield
        finally:
            self.library.cuCtxPopCurrent_v2(byref(c_void_p()))

    def reason(self, code: int) -> str:
        words = []
        for function in (self.library.cuGetErrorName, self.library.cuGetErrorString):
            text = c_char_p()
            if function(code, byref(text)) == SUCCESS:
                words.append(python_string(text.value))
        return "".join(f"{mark}{text}" for mark, text in zip((", ", ": "), words))

    def copy_in(self, destination: int, source: int, length: int) -> None:
        self.call("cuMemcpyHtoD_v2", destination, source, length)
        self.call("cuStreamSynchronize", None)  # the last bytes of pageable memory may still be on their way

    def copy_out(self, destination: int, source: int, length: int) -> None:
        self.call("cuMemcpyDtoH_v2", destination, source, length)

    def _handle(self, device: int) -> int:
        handle = c_int()
        self.call("cuDeviceGet", byref(handle), device)
        return handle.value

    def _context(self, device: int) -> c_void_p:
        with self._lock:
            if device not in self._contexts:
                context = c_void_p()
                self.call("cuDevicePrimaryCtxRetain", byref(context), self._handle(device))
                self._contexts[device] = context
            return self._contexts[device]


def _release(library: ctypes.CDLL, contexts: dict[int, c_void_p]) -> None:
    handle = c_int()
    for device in contexts:
        if library.cuDeviceGet(byref(handle), device) == SUCCESS:
            library.cuDevicePrimaryCtxRelease_v2(handle)
    contexts.clear()


def available() -> bool:
    """Whether CUDA's driver library is there, and has a GPU for this process. No context is created."""
    file = os.environ.get(VARIABLE) or FILE
    if file not in _found and visible_devices() > 0 and _opened(file) is not None:
        _found.add(file)
    return file in _found


_found: set[str] = set()  # libraries that have a GPU for this process; this does not change


def visible_devices() -> int:
    """How many GPUs this process may use.

    CUDA reads CUDA_VISIBLE_DEVICES when it is initialized, and a child that is forked after that cannot use it. So this
    function initializes CUDA only where it must:

    1. For the library that KVFERRY_CUDA names, it initializes CUDA and asks it.
    2. If the process has initialized CUDA, it asks CUDA.
    3. If the kernel's driver shows GPUs, it counts those that CUDA_VISIBLE_DEVICES does not leave out.
    4. Otherwise, as in Windows' subsystem for Linux, it initializes CUDA and asks it.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _device_count(_opened(named), initialize=True) or 0
    known, nodes = _device_count(_opened(FILE, os.RTLD_NOLOAD), initialize=False), _nodes()
    if known is None and nodes:
        return _visible_of(len(nodes), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if known is None:
        known = _device_count(_opened(FILE), initialize=True)
    return known or 0


def _opened(file: str, mode: int = 0) -> ctypes.CDLL | None:
    """The library, or None where it cannot be opened."""
    try:
        return open_library(file, mode)
    except OSError:
        return None


def _device_count(library: ctypes.CDLL | None, initialize: bool) -> int | None:
    """How many GPUs CUDA has; None where it does not say, as before it is initialized."""
    count = c_int()
    try:
        if library is None or (initialize and library.cuInit(0) != SUCCESS):
            return None
        return count.value if library.cuDeviceGetCount(byref(count)) == SUCCESS else None
    except AttributeError:  # another library
        return None


def _nodes() -> list[str]:
    """The nodes of the GPUs that this process may open."""
    try:
        found = [name for name in os.listdir(NODES) if name.startswith("nvidia") and name[6:].isdigit()]
    except OSError:
        return []
    return [name for name in found if os.access(NODES / name, os.R_OK | os.W_OK)]


def _visible_of(number: int, chosen: str | None) -> int:
    """How many of the machine's GPUs CUDA_VISIBLE_DEVICES leaves to this process: as many as it names before the first
    name that is not a GPU's. None if it names one twice."""
    if chosen is None:
        return number
    visible: list[str] = []
    for item in (part.strip() for part in chosen.split(",")):
        if item in visible:
            return 0
        if not (item.startswith(("GPU-", "MIG-")) or (item.isdigit() and int(item) < number)):
            break
        visible.append(item)
    return min(len(visible), number)
