"""What peers may do with registered memory: the names that Python has for the flags of kvferry_register."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvferry._bindings import KVFERRY_ACCESS_NONE, KVFERRY_ACCESS_REMOTE_READ, KVFERRY_ACCESS_REMOTE_WRITE

READ_WRITE = KVFERRY_ACCESS_REMOTE_READ | KVFERRY_ACCESS_REMOTE_WRITE

NAMES = {
    "none": KVFERRY_ACCESS_NONE,
    "read": KVFERRY_ACCESS_REMOTE_READ,
    "write": KVFERRY_ACCESS_REMOTE_WRITE,
    "read-write": READ_WRITE,
}


def flags(access: Any, names: Mapping[str, int] = NAMES) -> int:
    """The flags of a name. A TypeError for no str, and a ValueError for one that is no name."""
    if not isinstance(access, str):
        raise TypeError(f"access must be a str, not {type(access).__name__}")
    if access not in names:
        raise ValueError(f"access must be one of {', '.join(map(repr, names))}, not {access!r}")
    return names[access]
