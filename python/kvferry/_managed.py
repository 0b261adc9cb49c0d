"""The base class of what owns something in the native library."""

from __future__ import annotations

import weakref
from typing import Callable


class Managed:
    """Owns one handle, and gives it back once: by close(), when the last reference goes, or at interpreter exit."""

    def __init__(self, handle: int, release: Callable[[int], object]) -> None:
        """release gets the handle, may be called on any thread, and must not refer to this object."""
        self.handle = handle
        self._finalizer = weakref.finalize(self, release, handle)

    def close(self) -> None:
        """Give the handle back now. Calls that are under way with it return an error; later ones do so at once."""
        self._finalizer()
