"""TransferEngine: Mooncake's interface, which is defaults, failure values and time limits, over kvferry's engine."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from kvferry._library import LibraryError, load
from kvferry._memory import ManagedMemory
from mooncake.engine import _notices
from mooncake.engine._background import BackgroundTransfers
from mooncake.engine._blocking import BlockingTransfers
from mooncake.engine._cuda import StreamTransfers
from mooncake.engine._lifecycle import LifeCycle
from mooncake.engine._memory import MemoryCalls
from mooncake.engine._peers import PeerCalls
from mooncake.engine._scatter import ScatterTransfers
from mooncake.engine._types import TransferOpcode


class TransferEngine(
    LifeCycle, MemoryCalls, PeerCalls, BlockingTransfers, BackgroundTransfers, ScatterTransfers, StreamTransfers
):
    """An engine: memory that peers may read and write, and transfers between it and theirs.

    It does nothing until initialize(). When the last reference goes, it ends, and with it the transfers that are under
    way: within about a second, or within some seconds where something is stuck in a system call or on a device.
    Addresses and lengths are integers from 0 to 2^64-1, lists of them any sequence; anything else is a TypeError. The
    memory is the caller's. A target is a peer's name, host:port.

    A blocking call gives up after MC_TRANSFER_TIMEOUT seconds, as the variable was when the object was made, and 1 s
    for each GiB. Whatever a call returned or raised, it does not touch its buffers afterwards. If something is stuck
    that may still use them, an error in the log says so.
    """

    TransferOpcode = TransferOpcode

    def __init__(self) -> None:
        """Load the native library, if this is the process's first engine. LibraryError says why it cannot be loaded."""
        load()
        _notices.serving()
        self._engine = None
        self._memory = ManagedMemory()
        self._initializing = threading.Lock()
        self._timeout = _transfer_timeout()
        self._pid = os.getpid()
        _engines.add(self)


class _Inherited(TransferEngine):
    """What a TransferEngine becomes in a forked child, where nothing of it works."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        raise LibraryError(
            f"this TransferEngine was made by process {self._pid}, from which this one was forked; "
            "an engine cannot be used after fork(): make a new TransferEngine()"
        )


_engines: weakref.WeakSet[TransferEngine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.__class__ = _Inherited
    _engines.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _transfer_timeout() -> float:
    """MC_TRANSFER_TIMEOUT in seconds, or where it is not set ASCEND_TRANSFER_TIMEOUT, which is in milliseconds. The
    native library warns of a value that is no good."""
    seconds = _whole_number("MC_TRANSFER_TIMEOUT")
    if seconds is not None:
        return max(5.0, float(seconds))
    milliseconds = _whole_number("ASCEND_TRANSFER_TIMEOUT")
    return 30.0 if milliseconds is None else milliseconds / 1000


def _whole_number(variable: str) -> int | None:
    """A number from 1 to 2^31-1 from the environment; None for anything else."""
    try:
        number = int(os.environ.get(variable, ""))
    except ValueError:
        return None
    return number if 1 <= number < 2**31 else None
