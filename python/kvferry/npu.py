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
import weakref
from ctypes import byref, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any, Callable

from kvferry._ffi import python_string
from kvferry._managed import Managed

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
    "aclrtMemcpy": [c_void_p, c_size_t, c_void_p, c_size_t, c_int],
}


class NpuError(RuntimeError):
    """AscendCL cannot be opened, or one of its calls failed; the text says which, and why."""


class AscendCL:
    """One AscendCL library, opened and initialized. Any thread may call it.

    AscendCL has a current device for each thread. A call that concerns a device makes it the calling thread's, and
    leaves it so.
    """

    def __init__(self) -> None:
        """Open the file that KVFERRY_ASCENDCL names, or else the one that the loader or the toolkit's variables find.
        NpuError says where it was looked for."""
        self.library = _open()
        self.simulated = hasattr(self.library, "kvferry_sim_report")  # no real AscendCL has it
        self._lock = threading.Lock()
        self._sets: dict[int, int] = {}  # how often each device was made a thread's
        try:
            for name, parameters in _PROTOTYPES.items():
                function = getattr(self.library, name)
                function.restype, function.argtypes = c_int, parameters
            self.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        except AttributeError as e:
            raise NpuError(f"{self.library._name} is not AscendCL: {e}") from e
        self.path = _file_of(self.library.aclInit)
        if (code := self.library.aclInit(None)) not in (0, ALREADY_INITIALIZED):
            raise self._error("aclInit", code)
        self._finalizer = weakref.finalize(self, _reset, self.library, self._sets)

    def close(self) -> None:
        """Let go of the devices, once their memory is freed. It is done by itself at interpreter exit."""
        self._finalizer()

    def devices(self) -> int:
        """How many NPUs this process may use. NpuError where the driver cannot tell."""
        count = c_uint32()
        self.call("aclrtGetDeviceCount", byref(count))
        return count.value

    def allocate(self, size: int, device: int = 0) -> Memory:
        """Memory of an NPU, of at least one byte."""
        return Memory(self, size, device)

    def allocate_pinned(self, size: int, device: int = 0) -> PinnedMemory:
        """Page-locked host memory that an NPU copies to and from at full speed, of at least one byte."""
        return PinnedMemory(self, size, device)

    def use(self, device: int) -> None:
        """Make a device the calling thread's current one."""
        current = c_int32()
        if self.library.aclrtGetDevice(byref(current)) == 0 and current.value == device:
            return
        self.call("aclrtSetDevice", device)
        with self._lock:
            self._sets[device] = self._sets.get(device, 0) + 1

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library. NpuError when it does not return 0."""
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> NpuError:
        reason = " ".join(python_string(self.library.aclGetRecentErrMsg()).split())
        return NpuError(f"{name} of {self.path} failed with {code}" + (f": {reason}" if reason else ""))


class _Allocated(Managed):
    """Memory of AscendCL's. It is freed by close(), when the last reference goes, or at interpreter exit."""

    def __init__(self, acl: AscendCL, size: int, device: int, allocate: Callable[[Any], None], free: str) -> None:
        self.size = size
        self.device = device
        self._acl = acl
        address = c_void_p()
        acl.use(device)
        allocate(byref(address))
        self.address = address.value or 0
        super().__init__(self.address, functools.partial(_free, acl, device, free))


class Memory(_Allocated):
    """Memory of an NPU, at an address that the host must not dereference.

    The copies below are done when they return. IndexError for a range that is not within the memory.
    """

    def __init__(self, acl: AscendCL, size: int, device: int) -> None:
        super().__init__(
            acl, size, device, lambda out: acl.call("aclrtMalloc", out, size, HUGE_PAGES_FIRST), "aclrtFree"
        )

    @property
    def location(self) -> str:
        """What the engine calls the device, as "npu:0"."""
        return f"npu:{self.device}"

    def write(self, data: bytes, offset: int = 0) -> None:
        """Copy bytes to the memory."""
        source = ctypes.cast(ctypes.c_char_p(data), c_void_p)
        self._copy(self._at(offset, len(data)), source.value or 0, len(data), HOST_TO_DEVICE)

    def read(self, length: int, offset: int = 0) -> bytearray:
        """Copy bytes from the memory."""
        data = bytearray(length)
        if length:
            self.read_to(ctypes.addressof(ctypes.c_char.from_buffer(data)), length, offset)
        return data

    def read_to(self, address: int, length: int, offset: int = 0) -> None:
        """Copy bytes from the memory to an address of the host's."""
        self._copy(address, self._at(offset, length), length, DEVICE_TO_HOST)

    def _at(self, offset: int, length: int) -> int:
        if not 0 <= offset <= offset + length <= self.size:
            raise IndexError(f"bytes {offset} to {offset + length} of {self.size} bytes of memory of {self.location}")
        return self.address + offset

    def _copy(self, destination: int, source: int, length: int, kind: int) -> None:
        self._acl.use(self.device)
        if length:
            self._acl.call("aclrtMemcpy", destination, length, source, length, kind)


class PinnedMemory(_Allocated):
    """Page-locked host memory."""

    def __init__(self, acl: AscendCL, size: int, device: int) -> None:
        super().__init__(acl, size, device, lambda out: acl.call("aclrtMallocHost", out, size), "aclrtFreeHost")


# What ends something does its best: there is nobody to tell that it failed, and it may be on any thread.


def _free(acl: AscendCL, device: int, function: str, address: int) -> None:
    with contextlib.suppress(NpuError):
        acl.use(device)
        acl.call(function, address)


def _reset(library: ctypes.CDLL, sets: dict[int, int]) -> None:
    for device, count in sets.items():
        for _ in range(count):
            library.aclrtResetDevice(device)


def _open() -> ctypes.CDLL:
    """The library that the engine opens, too."""
    tried = []
    for path in _candidates():
        try:
            return ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as e:
            tried.append(str(e))
    raise NpuError("AscendCL cannot be opened: " + "; ".join(tried))


def _candidates() -> list[str]:
    named = os.environ.get(VARIABLE)
    if named:
        return [named]
    homes = [os.environ[variable] for variable in TOOLKITS if os.environ.get(variable)]
    return [FILE, *(str(Path(home) / "lib64" / FILE) for home in homes)]


class _Symbol(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = [("file", ctypes.c_char_p), ("base", c_void_p), ("name", ctypes.c_char_p), ("address", c_void_p)]


def _file_of(function: Any) -> str:
    """The file that a function was loaded from."""
    symbol = _Symbol()
    ctypes.CDLL(None).dladdr(ctypes.cast(function, c_void_p), byref(symbol))
    return python_string(symbol.file)
