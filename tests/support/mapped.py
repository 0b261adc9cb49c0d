"""Memory of the host that this process has mapped for itself; needs Python 3.9."""

from __future__ import annotations

import ctypes
import mmap


class MappedRegion:
    """Some pages. `flags` are of mmap, beside those of private and anonymous memory."""

    def __init__(self, size: int, flags: int = 0) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def free(self) -> None:
        self._map.close()
