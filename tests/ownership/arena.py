"""The memory of a worker: one file in memory, mapped by the worker and by the checker.

It has AREAS areas of SIZE bytes, each three times:

    body    what the engine reads and writes, or for an area on a device what is to be copied there
    shadow  what the worker covers the body with when it is its own again, prepared by the checker
    result  what the worker found in the body

and a page with a time for each area, when the engine had the whole of the call that uses it.

The first REGIONS areas are offered to peers, the others are buffers for the worker's own transfers. A worker maps the
bodies at BASE, whichever worker it is: a transfer that goes to the wrong process finds memory there, too.

It runs in the workers, and needs Python 3.9 and no packages.
"""

from __future__ import annotations

import ctypes
import mmap
import os

BASE = 0x6000_0000_0000
SIZE = 1 << 20  # bytes of an area
REGIONS = 2
BUFFERS = 10
AREAS = REGIONS + BUFFERS
TIMES = 3 * AREAS * SIZE
LENGTH = TIMES + mmap.PAGESIZE

MAP_FIXED_NOREPLACE = 0x100000


def body(area: int) -> int:
    """Where an area's body begins in the file."""
    return area * SIZE


def shadow(area: int) -> int:
    return (AREAS + area) * SIZE


def result(area: int) -> int:
    return (2 * AREAS + area) * SIZE


def submitted(area: int) -> int:
    """Where the time is, a double of time.monotonic."""
    return TIMES + area * ctypes.sizeof(ctypes.c_double)


def create() -> tuple[int, mmap.mmap]:
    """Make the file, and map it somewhere: its descriptor and the mapping."""
    descriptor = os.memfd_create("arena")
    os.ftruncate(descriptor, LENGTH)
    return descriptor, mmap.mmap(descriptor, LENGTH)


def map_at_base(path: str) -> int:
    """Map the file at BASE, which is returned."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    descriptor = os.open(path, os.O_RDWR)
    flags = mmap.MAP_SHARED | MAP_FIXED_NOREPLACE
    address = libc.mmap(BASE, LENGTH, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    os.close(descriptor)
    if address != BASE:
        raise OSError(ctypes.get_errno(), f"nothing can be mapped at {BASE:#x}")
    return BASE
