"""Memory whose pages do not come, as those of a file system that hangs; needs Python 3.9."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import struct

from .mapped import MappedRegion

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
API, MISSING = 0xAA, 1
LIMIT = 30.0  # seconds


def withhold(address: int, length: int) -> int:
    """Have whoever touches these pages, which nobody has touched yet, wait until the descriptor that is returned is
    closed. OSError where the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = SYS_USERFAULTFD[platform.machine()]
    descriptor: int = libc.syscall(ctypes.c_long(number), ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(descriptor, UFFDIO_API, struct.pack("QQQ", API, 0, 0))
    fcntl.ioctl(descriptor, UFFDIO_REGISTER, struct.pack("QQQQ", address, length, MISSING, 0))
    return descriptor


class AbsentRegion(MappedRegion):
    """Memory of the host that must not be read or written here before come()."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._descriptor = withhold(self.address, size)

    def wait_for_touch(self) -> None:
        """Return when something waits for a page."""
        watch = select.poll()
        watch.register(self._descriptor, select.POLLIN)
        assert watch.poll(LIMIT * 1000), "nothing touches the memory"

    def come(self) -> None:
        """Let whoever waits have the pages, zeroed. The memory is like any other then."""
        os.close(self._descriptor)


def allowed() -> bool:
    """Tell whether this process may make such memory."""
    try:
        AbsentRegion(mmap.PAGESIZE).come()
    except (OSError, KeyError):
        return False
    return True
