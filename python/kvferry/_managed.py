"""The base class of objects that own something outside of Python: an engine, a server, memory of a device."""

from __future__ import annotations

import weakref
from typing import Any, Callable, TypeVar

Self = TypeVar("Self", bound="Managed")


class OfProcess:
    """The base class of objects that no other process can have, and that there are no copies of."""

    _instead = ""  # what may be sent in place of it

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"this {type(self).__name__} belongs to its process, and cannot be pickled or copied{self._instead}"
        )


class Managed:
    """Releases what it owns once: by close(), at the end of a with block, when the last reference goes, or at
    interpreter exit. Any thread may close it."""

    def __init__(self, release: Callable[[], object]) -> None:
        """release must not refer to this object, and may be called on any thread."""
        self._finalizer = weakref.finalize(self, release)

    def close(self) -> None:
        """Release what this owns now, if it is not released."""
        self._release()

    def _release(self) -> Any:
        """close(), with what release returned: None where it was called before."""
        return self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether close() was called, or this was released otherwise. Another thread may still be in close()."""
        return not self._finalizer.alive

    def _check_open(self) -> None:
        """ValueError when this is closed."""
        if self.closed:
            raise ValueError(f"this {type(self).__name__} is already closed")

    def __enter__(self: Self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
