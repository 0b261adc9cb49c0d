"""The machine's clock."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

_UNSYNCHRONISED = 0x40  # STA_UNSYNC of linux/timex.h


class Clock(NamedTuple):
    """The state of the clock that shows the time of day."""

    synchronised: bool
    error: float  # seconds: the kernel's estimate


class _Timex(ctypes.Structure):
    """struct timex, as far as it is read here."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def clock() -> Clock | None:
    """The clock; None where the kernel does not tell, as in some containers."""
    state = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state)) < 0:
        return None
    return Clock(not state.status & _UNSYNCHRONISED, state.estimated_error / 1e6)
