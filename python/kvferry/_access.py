"""What peers may do with registered memory: the names that Python has for the flags of kvferry_register."""

from __future__ import annotations

from typing import Any

from kvferry._bindings import KVFERRY_ACCESS_NONE, KVFERRY_ACCESS_REMOTE_READ, KVFERRY_ACCESS_REMOTE_WRITE

READ_WRITE = KVFERRY_ACCESS_REMOTE_READ | KVFERRY_ACCESS_REMOTE_WRITE

NAMES = {
    "none": KVFERRY_ACCESS_NONE,
    "read": KVFERRY_ACCESS_REMOTE_READ,
    "write": KVFERRY_ACCESS_REMOTE_WRITE,
    "read-write": READ_WRITE,
}


def flags(access: Any) -> int:
    """The flags of a name; None is everything. A TypeError for no str, and a ValueError for another one."""
    if access is None:
        return READ_WRITE
    if not isinstance(access, str):
        raise TypeError(f"access must be a str, not {type(access).__name__}")
    if access not in NAMES:
        raise ValueError(f"access must be one of {', '.join(map(repr, NAMES))}, not {access!r}")
    return NAMES[access]
