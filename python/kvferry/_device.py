"""Memory of a vendor's devices, by way of the vendor's library: the common part of kvferry.npu and kvferry.gpu."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from ctypes import byref, c_void_p
from typing import Any, Callable, ClassVar

from kvferry._ffi import python_string
from kvferry._managed import Managed


class DeviceError(RuntimeError):
    """A vendor's library cannot be opened, or one of its calls failed; the text says which, and why."""


class Runtime(Managed):
    """A vendor's library, opened. Any thread may call it. Its functions return 0 for success.

    close(), or interpreter exit, gives back the devices that it has used. Their memory must be freed before.
    """

    title: ClassVar[str]  # the name of the library, for errors
    location: ClassVar[str]  # the engine's name for its devices, as "npu"
    error: ClassVar[type[DeviceError]]

    def __init__(self, files: Sequence[str], prototypes: dict[str, list[Any]]) -> None:
        """Open the first of the files that can be opened. prototypes has the functions that are used, with their
        parameters."""
        self.library = self._open(files)
        self.simulated = hasattr(self.library, "kvferry_sim_report")  # no vendor's library has it
        try:
            for name, parameters in prototypes.items():
                function = getattr(self.library, name)
                function.restype, function.argtypes = ctypes.c_int, parameters
        except AttributeError as e:
            raise self.error(f"{self.library._name} is not {self.title}: {e}") from e
        self.path = _file_of(getattr(self.library, next(iter(prototypes))))

    def _open(self, files: Sequence[str]) -> ctypes.CDLL:
        tried = []
        for path in files:
            try:
                return open_library(path)
            except OSError as e:
                tried.append(str(e))
        raise self.error(f"{self.title} cannot be opened: {'; '.join(tried)}")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library. An error of this runtime's when it does not return 0."""
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise self.failure(name, code)

    def failure(self, name: str, code: int) -> DeviceError:
        """The error of a call that returned that code."""
        return self.error(f"{name} of {self.path} failed with {code}{self.reason(code)}")

    def reason(self, code: int) -> str:
        """The library's text for the calling thread's latest error, with a separator before it; "" where there is
        none."""
        raise NotImplementedError

    def devices(self) -> int:
        """How many devices this process may use. An error of this runtime's where the driver cannot tell."""
        raise NotImplementedError

    def allocate(self, size: int, device: int = 0) -> Memory:
        """Memory of a device, of at least one byte."""
        raise NotImplementedError

    def allocate_pinned(self, size: int, device: int = 0) -> PinnedMemory:
        """Page-locked host memory, which devices copy to and from at full speed, of at least one byte. device is the
        one that allocates it."""
        raise NotImplementedError

    def on(self, device: int) -> AbstractContextManager[None]:
        """Within this, calls of this thread are for the device."""
        raise NotImplementedError

    def copy_in(self, destination: int, source: int, length: int) -> None:
        """Copy bytes of the host to the current device. Returns when that is done."""
        raise NotImplementedError

    def copy_out(self, destination: int, source: int, length: int) -> None:
        """Copy bytes of the current device to the host. Returns when that is done."""
        raise NotImplementedError


class Allocated(Managed):
    """Memory of a runtime. It is freed by close(), when the last reference goes, or at interpreter exit."""

    def __init__(self, runtime: Runtime, size: int, device: int, allocate: Callable[[Any], None], free: str) -> None:
        """allocate stores the address in its argument. free is the name of the function that frees it. Both are called
        on the device."""
        self.size = size
        self.device = device
        self._runtime = runtime
        address = c_void_p()
        with runtime.on(device):
            allocate(byref(address))
        self.address = address.value or 0
        super().__init__(functools.partial(_free, runtime, device, free, self.address))


class Memory(Allocated):
    """Memory of a device, at an address that the host need not be able to dereference.

    A copy is done when its function returns. IndexError for a range that is not within the memory, and ValueError
    when the memory is freed.
    """

    @property
    def location(self) -> str:
        """The engine's name for the device, as "npu:0"."""
        return f"{self._runtime.location}:{self.device}"

    def write(self, data: bytes, offset: int = 0) -> None:
        """Copy bytes to the memory."""
        source = ctypes.cast(ctypes.c_char_p(data), c_void_p)
        self.write_from(source.value or 0, len(data), offset)

    def write_from(self, address: int, length: int, offset: int = 0) -> None:
        """Copy bytes to the memory, from an address of the host's."""
        destination = self._at(offset, length)
        if length:
            with self._runtime.on(self.device):
                self._runtime.copy_in(destination, address, length)

    def read(self, length: int, offset: int = 0) -> bytearray:
        """Copy bytes from the memory."""
        data = bytearray(length)
        if length:
            self.read_to(ctypes.addressof(ctypes.c_char.from_buffer(data)), length, offset)
        return data

    def read_to(self, address: int, length: int, offset: int = 0) -> None:
        """Copy bytes from the memory to an address of the host's."""
        source = self._at(offset, length)
        if length:
            with self._runtime.on(self.device):
                self._runtime.copy_out(address, source, length)

    def _at(self, offset: int, length: int) -> int:
        self._check_open()
        if not 0 <= offset <= offset + length <= self.size:
            raise IndexError(f"bytes {offset} to {offset + length} of {self.size} bytes of memory of {self.location}")
        return self.address + offset


class PinnedMemory(Allocated):
    """Page-locked host memory, which devices copy to and from at full speed."""


def _free(runtime: Runtime, device: int, function: str, address: int) -> None:
    """Free memory, on any thread. Errors are ignored: no caller could act on them."""
    with contextlib.suppress(DeviceError), runtime.on(device):
        runtime.call(function, address)


def open_library(path: str, mode: int = 0) -> ctypes.CDLL:
    """Open a library as the engine does. mode has further flags of dlopen(3). OSError says why it cannot be opened."""
    return ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL | mode)


class _Symbol(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = [("file", ctypes.c_char_p), ("base", c_void_p), ("name", ctypes.c_char_p), ("address", c_void_p)]


def _file_of(function: Any) -> str:
    """The file that a function was loaded from."""
    symbol = _Symbol()
    ctypes.CDLL(None).dladdr(ctypes.cast(function, c_void_p), byref(symbol))
    return python_string(symbol.file)
