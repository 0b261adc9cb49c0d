"""Registered memory of this process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from kvferry import _log
from kvferry._bindings import KVFERRY_ERR_IN_USE, KVFERRY_OK, Functions
from kvferry._buffers import Buffer
from kvferry._errors import RegionInUse
from kvferry._ffi import last_error
from kvferry._managed import Managed
from kvferry._ranges import Range, part_of

if TYPE_CHECKING:
    from kvferry._native import Engine


class Registration(Managed):
    """The registration of some memory. It ends by close(), or with the last reference, which a Region, its slices and
    transfers under way have."""

    def __init__(self, functions: Functions, engine: int, buffer: Buffer, registered: dict[int, Buffer]) -> None:
        """Own what was registered with an engine, by its handle. registered keeps the memory of the engine's regions by
        address. The engine keeps that for as long as it may use the memory."""
        self.buffer = buffer
        registered[buffer.address] = buffer
        super().__init__(functools.partial(_unregister, functions, engine, buffer.address, registered))
        self._finalizer.atexit = False  # type: ignore[misc] # the engine ends, and with it the registration

    def end(self) -> tuple[int, str]:
        """close(), with its code and its reason: (0, "") where it was called before."""
        return self._release() or (KVFERRY_OK, "")


def _unregister(functions: Functions, engine: int, address: int, registered: dict[int, Buffer]) -> tuple[int, str]:
    code = functions.kvferry_unregister(engine, address)
    if code == KVFERRY_OK:
        registered.pop(address, None)
    if code != KVFERRY_ERR_IN_USE:  # or else the engine has ended, and keeps what something stuck may use
        return KVFERRY_OK, ""
    reason = last_error(functions)
    _log.error("memory at %#x is kept: %s", address, reason)
    return code, reason


class Slice(Range):
    """A part of a Region, which it keeps. To pickle it gives the Range alone."""

    __slots__ = ("region",)

    def __init__(self, region: Region, address: int, nbytes: int) -> None:
        super().__init__(address, nbytes)
        self.region = region

    def __getitem__(self, part: slice) -> Slice:
        return Slice(self.region, *part_of(self, part))


class Region:
    """Memory that is registered with an engine. It keeps the memory and the engine. Any thread may use it.

    region[a:b] is a part of it, in bytes, to be moved. close(), the end of a with block, or the end of the last
    reference to it, its slices and its transfers unregisters the memory.
    """

    def __init__(self, engine: Engine, registration: Registration, access: str) -> None:
        self.engine = engine
        self.access = access
        self.registration = registration

    @property
    def address(self) -> int:
        """Where the memory begins, in this process."""
        return self.registration.buffer.address

    @property
    def nbytes(self) -> int:
        """The size of the memory in bytes."""
        return self.registration.buffer.nbytes

    @property
    def range(self) -> Range:
        """What a peer needs to know to move bytes of it: the numbers alone."""
        return Range(self.address, self.nbytes)

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, part: slice) -> Slice:
        return Slice(self, *part_of(self, part))

    @property
    def closed(self) -> bool:
        """Whether close() was called. Another thread may still be in it."""
        return self.registration.closed

    def close(self) -> None:
        """Unregister the memory. Peers' transfers of it end, and so do those of this engine, with Cancelled.

        When it returns, nothing touches the memory any more. RegionInUse says what is stuck and may still use it, after
        about seven seconds. A second call does nothing, nor does one in a forked child.
        """
        code, reason = self.registration.end()
        if code != KVFERRY_OK:
            raise RegionInUse(reason, who=self.engine.name, what=f"unregister {self.nbytes} bytes at {self.address:#x}")

    def __enter__(self) -> Region:
        if self.closed:
            raise ValueError("this Region is already closed")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<Region of {self.nbytes} bytes at {self.address:#x}, access {self.access}{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Region belongs to its process: send region.range, or Engine.describe(region)")
