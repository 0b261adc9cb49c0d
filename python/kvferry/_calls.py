"""Calls that the native library makes in the background, because a store, a peer or a device may be slow to answer."""

from __future__ import annotations

from ctypes import byref, c_uint64
from typing import Any, Callable

from kvferry._bindings import Functions
from kvferry._waiting import UNFINISHED, wait_in_steps


def background_call(
    functions: Functions, start: Callable[..., int | None], arguments: tuple[Any, ...], timeout: float, result: c_uint64
) -> int:
    """Start a call and wait for it, for up to timeout seconds; its code.

    The library stores the result together with the end of the call. A call that has not ended, because the time is over
    or because a signal handler raises, is abandoned: the library ends it, and an engine that it makes.
    """
    calls: list[int] = []
    try:
        # Python may run a signal handler after a C function has returned and before its result is assigned. It runs
        # none within extend(). filter() leaves out the NULL of a call that was not started.
        calls.extend(filter(None, map(start, *([argument] for argument in arguments))))
        if not calls:
            return -1
        code = wait_in_steps(timeout, lambda ms: functions.kvferry_call_wait(calls[0], ms, byref(result)))
        if code in UNFINISHED:
            functions.kvferry_call_abandon(calls[0])
        return code
    except BaseException:
        if calls:
            functions.kvferry_call_abandon(calls[0])
        raise
