"""Waiting in the native library in such a way that Python's signal handlers run in time."""

from __future__ import annotations

import math
import os
import time
from typing import Callable, SupportsFloat

from kvferry._bindings import KVFERRY_ERR_INTERRUPTED, KVFERRY_ERR_TIMED_OUT

# The library ends a wait when a signal arrives during the wait. For a signal that arrives just before it, no single
# wait is longer than this, in seconds.
LONGEST_WAIT = 0.5
LONGEST_WAIT_MS = int(LONGEST_WAIT * 1000)
UNFINISHED = (KVFERRY_ERR_INTERRUPTED, KVFERRY_ERR_TIMED_OUT)

# Computes, in seconds, how much longer than usual a call may take, for the bytes that it moves.
ExtraTime = Callable[[], float]


def no_time() -> float:
    """The ExtraTime of a call that gets no time for its bytes."""
    return 0.0


def wait_in_steps(timeout: float, wait: Callable[[int], int]) -> int:
    """Call wait(milliseconds) until it has an answer or timeout seconds are over, and return its last code.

    Between two calls Python runs pending signal handlers. What they raise ends this function.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        code = wait(milliseconds(min(left, LONGEST_WAIT)))
        if code not in UNFINISHED or (code == KVFERRY_ERR_TIMED_OUT and left <= LONGEST_WAIT):
            return code


def seconds(value: float, what: str) -> float:
    """A time that a caller gives, in seconds. TypeError for what is no number; ValueError for NaN."""
    found = _number(value, what)
    if math.isnan(found):
        raise ValueError(f"{what} is a number of seconds, not NaN")
    return found


def limit(value: float, what: str = "a time limit") -> float:
    """seconds() of what must be more than 0: ValueError where it is not, or is NaN."""
    found = _number(value, what)
    if not found > 0:
        raise ValueError(f"{what} is more than 0 seconds, not {value!r}")
    return found


def _number(value: float, what: str) -> float:
    if isinstance(value, str) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{what} is a number of seconds, not {type(value).__name__}")
    return float(value)


def milliseconds(seconds: float) -> int:
    """Seconds as the library takes a time: whole milliseconds, rounded up, not negative. ValueError for NaN."""
    if math.isnan(seconds):
        raise ValueError("a time is a number of seconds, not NaN")
    return min(max(0, math.ceil(seconds * 1000)), 2**63 - 1)


def setting() -> str:
    """The name of the setting that limits the time of a call that was given no limit."""
    mooncakes, ascends = "MC_TRANSFER_TIMEOUT", "ASCEND_TRANSFER_TIMEOUT"
    return ascends if ascends in os.environ and mooncakes not in os.environ else mooncakes


def and_size(limit: str) -> str:
    """A time limit, by its name, that gets longer with the number of bytes."""
    return f"{limit}, and 1 s for each GiB"


def given_up(seconds: float, limit: str | None = None) -> str:
    """The text for a call that ended because its time limit, in seconds, was over. It names the limit: that of the
    setting where limit is None."""
    return f"given up after {round(seconds, 1):g} s ({limit or and_size(setting())})"
