"""Managed buffers, which are host memory: blocks of 8 KiB to 256 MiB in size classes, and larger ones one by one."""

from __future__ import annotations

import mmap
import threading
from typing import Callable

from kvferry import _log
from kvferry._bindings import KVFERRY_ERR_IN_USE
from kvferry._ffi import address_of

SMALLEST = 8 << 10
LARGEST = 256 << 20
SLAB = 1 << 20  # blocks up to this size are cut from mappings of this size


class Mapping:
    """Private anonymous memory, zeroed. It is unmapped when the last reference goes."""

    def __init__(self, length: int) -> None:
        """OSError, OverflowError or ValueError when the system does not give so much."""
        self.buffer = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = address_of(self.buffer)
        self.length = length


class ManagedMemory:
    """The allocator. Any thread may call it.

    register and unregister are the engine's functions and return 0 for success. The allocator maps memory when a block
    is asked for and its class has no free one. It keeps freed blocks for later calls.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: dict[int, Mapping] = {}  # by address
        self._free: dict[int, list[int]] = {}  # addresses by block size
        self._sizes: dict[int, int] = {}  # of the blocks in use, by address
        self._in_use: list[Mapping] = []  # of freed blocks that something stuck may still use

    def allocate(self, length: int, register: Callable[[int, int], int]) -> int:
        """The address of a block of at least length bytes, or 0; the log says why."""
        size = block_size(length)
        with self._lock:
            free = self._free.get(size) or self._grow(size, register)
            if not free:
                return 0
            address = free.pop()
            self._sizes[address] = size
            return address

    def _grow(self, size: int, register: Callable[[int, int], int]) -> list[int]:
        """Map and register more memory; the new free blocks, none on failure."""
        try:
            mapping = Mapping(max(size, SLAB))
        except (OSError, OverflowError, ValueError) as e:
            _log.warning("a managed buffer of %d bytes cannot be allocated: %s", size, e)
            return []
        code = register(mapping.address, mapping.length)
        if code != 0:
            _log.warning("a managed buffer of %d bytes cannot be registered: error %d", size, code)
            return []
        self._mappings[mapping.address] = mapping
        last = mapping.address + mapping.length - size
        blocks = list(range(last, mapping.address - 1, -size))
        if size <= LARGEST:
            self._free[size] = blocks
        return blocks

    def free(self, address: int, unregister: Callable[[int], int]) -> bool:
        """Take a block back. False for an address that is not that of a block in use."""
        with self._lock:
            size = self._sizes.pop(address, 0)
            if size > LARGEST:
                mapping = self._mappings.pop(address)
                if unregister(address) == KVFERRY_ERR_IN_USE:
                    self._in_use.append(mapping)
                    _log.error("a managed buffer of %d bytes at %#x is kept: it is still in use", size, address)
            elif size:
                self._free[size].append(address)
            return size > 0

    def register_all(self, register: Callable[[int, int], int]) -> int:
        """Register all memory with another engine; the first code that is not 0, or 0."""
        with self._lock:
            for mapping in self._mappings.values():
                code = register(mapping.address, mapping.length)
                if code != 0:
                    return code
            return 0


def block_size(length: int) -> int:
    """The size of the class that length bytes come from; whole pages above the largest class."""
    if length > LARGEST:
        return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
    return max(SMALLEST, 1 << max(length - 1, 0).bit_length())
