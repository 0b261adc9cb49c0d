"""NPU memory as a program has it, over AscendCL: the simulator's, or that of real devices.

Needs Python 3.9 and no packages: it runs in the peers. There KVFERRY_TESTS_ASCENDCL names the library, which is the one
that their engines are to find: of a library that is loaded twice there is one in a process, and so are its devices.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import json
import os
import threading
from typing import Any, Callable, TypeVar

T = TypeVar("T")

VARIABLE = "KVFERRY_TESTS_ASCENDCL"
ALREADY_INITIALIZED = 100002  # what aclInit returns to whoever is not the first
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
HUGE_FIRST = 0


class AscendError(RuntimeError):
    """A function of AscendCL failed; the text says which and why."""


class Runtime:
    """AscendCL in this process. Any thread may use it, whichever device is current there."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        self.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self._devices: dict[int, Device] = {}
        self._lock = threading.Lock()
        code = self.library.aclInit(None)
        if code not in (0, ALREADY_INITIALIZED):
            raise AscendError(f"aclInit: error {code}")

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function on this thread."""
        code = getattr(self.library, function)(*arguments)
        if code != 0:
            text = (self.library.aclGetRecentErrMsg() or b"").decode(errors="replace")
            raise AscendError(f"{function}: error {code}: {text}")

    def device(self, index: int) -> Device:
        with self._lock:
            if index not in self._devices:
                self._devices[index] = Device(self, index)
            return self._devices[index]

    def close(self) -> None:
        """Let go of every device; their memory must have been freed."""
        with self._lock:
            while self._devices:
                self._devices.popitem()[1].close()


@functools.cache
def runtime() -> Runtime:
    """The runtime that the environment names, opened on first use."""
    return Runtime(os.environ[VARIABLE])


class Device:
    """One device, and the thread that it is current on: the only one that this module calls it from."""

    def __init__(self, runtime: Runtime, index: int) -> None:
        self._runtime = runtime
        self._index = index
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"npu:{index}")
        self.run(lambda: runtime.call("aclrtSetDevice", ctypes.c_int32(index)))

    def run(self, action: Callable[[], T]) -> T:
        """Run something on the device's thread."""
        return self._thread.submit(action).result()

    def call(self, function: str, *arguments: Any) -> None:
        self.run(lambda: self._runtime.call(function, *arguments))

    def give_back(self, function: str, what: Any) -> None:
        """Call a function that gives something back. It does so also where it fails, as on a device that was lost."""
        with contextlib.suppress(AscendError):
            self.call(function, what)

    def close(self) -> None:
        self.give_back("aclrtResetDevice", ctypes.c_int32(self._index))
        self._thread.shutdown()

    def allocate(self, size: int) -> int:
        address = ctypes.c_void_p()
        self.call("aclrtMalloc", ctypes.byref(address), ctypes.c_size_t(size), HUGE_FIRST)
        assert address.value
        return address.value

    def free(self, address: int) -> None:
        self.give_back("aclrtFree", ctypes.c_void_p(address))

    def allocate_pinned(self, size: int) -> int:
        address = ctypes.c_void_p()
        self.call("aclrtMallocHost", ctypes.byref(address), ctypes.c_size_t(size))
        assert address.value
        return address.value

    def free_pinned(self, address: int) -> None:
        self.give_back("aclrtFreeHost", ctypes.c_void_p(address))

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes from device memory."""
        data = ctypes.create_string_buffer(max(length, 1))
        self._copy(data, address, length, DEVICE_TO_HOST)
        return data.raw[:length]

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes into device memory."""
        self._copy(address, ctypes.c_char_p(data), len(data), HOST_TO_DEVICE)

    def _copy(self, destination: Any, source: Any, length: int, kind: int) -> None:
        size = ctypes.c_size_t(length)
        to, origin = (ctypes.c_void_p(place) if isinstance(place, int) else place for place in (destination, source))
        if length > 0:
            self.call("aclrtMemcpy", to, size, origin, size, kind)


class Simulator:
    """The controls of the simulated devices of this process; see sim/kvferry_sim.h."""

    def __init__(self, runtime: Runtime) -> None:
        self._library = runtime.library
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
