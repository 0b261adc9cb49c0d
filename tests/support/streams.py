"""Streams of CUDA, as programs have them; needs kvferry."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Callable

from kvferry.gpu import CUDA, Memory, PinnedMemory

LIMIT = 30.0  # seconds
NON_BLOCKING = 1
NOT_READY = 600

_Function = ctypes.CFUNCTYPE(None, c_void_p)


class Stream:
    """A stream of a GPU that has no order with the default stream, or that one."""

    def __init__(self, cuda: CUDA, device: int = 0, default: bool = False) -> None:
        self._cuda = cuda
        self._device = device
        self._handle = c_void_p()
        self._kept: list[Any] = []  # what the stream still uses
        self._go_on = threading.Event()
        if not default:
            self._call("cuStreamCreate", byref(self._handle), c_uint(NON_BLOCKING))

    @property
    def handle(self) -> int:
        """What *_on_cuda take."""
        return self._handle.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        with self._cuda.on(self._device):
            self._cuda.call(name, *arguments)

    def hold(self) -> None:
        """Keep what comes next from being done, until go_on()."""
        self._go_on.clear()

        def held(_: object) -> None:
            self._go_on.wait(LIMIT)

        function = _Function(held)
        self._kept.append(function)
        self._call("cuLaunchHostFunc", self._handle, function, None)

    def go_on(self) -> None:
        self._go_on.set()

    def busy(self) -> bool:
        """Whether something in it has not been done yet."""
        with self._cuda.on(self._device):
            code = int(self._cuda.library.cuStreamQuery(self._handle))
        assert code in (0, NOT_READY), self._cuda.failure("cuStreamQuery", code)
        return code == NOT_READY

    def put(self, memory: Memory, data: bytes) -> None:
        """Queue writing bytes to the memory of a GPU."""
        pinned = self._pinned(len(data))
        ctypes.memmove(pinned.address, data, len(data))
        arguments = (c_uint64(memory.address), c_void_p(pinned.address), c_size_t(len(data)))
        self._call("cuMemcpyHtoDAsync_v2", *arguments, self._handle)

    def get(self, memory: Memory) -> Callable[[], bytes]:
        """Queue reading the memory of a GPU. What is returned tells the bytes, once the stream is complete."""
        pinned = self._pinned(memory.size)
        arguments = (c_void_p(pinned.address), c_uint64(memory.address), c_size_t(memory.size))
        self._call("cuMemcpyDtoHAsync_v2", *arguments, self._handle)
        return lambda: ctypes.string_at(pinned.address, memory.size)

    def _pinned(self, size: int) -> PinnedMemory:
        pinned = self._cuda.allocate_pinned(size, self._device)
        self._kept.append(pinned)
        return pinned

    def wait(self) -> None:
        """Let it go on, and wait until everything in it has been done."""
        self.go_on()
        self._call("cuStreamSynchronize", self._handle)

    def close(self) -> None:
        """Destroy it, when everything in it has been done."""
        self.wait()
        self._kept.clear()
        if self._handle:
            self._call("cuStreamDestroy_v2", self._handle)
