"""The opcode and the notification of transfers."""

from __future__ import annotations

import enum


class TransferOpcode(enum.IntEnum):
    """The direction of a transfer: Read from the peer, Write to it."""

    Read = 0
    Write = 1
    READ = 0
    WRITE = 1

    __str__ = enum.Enum.__str__


class TransferNotify:
    """A message that a transfer delivers to the peer when it has completed. name and msg may also be bytes. Bytes that
    are not UTF-8 arrive as U+FFFD, as with Mooncake."""

    __slots__ = ("msg", "name")

    def __init__(self, name: str | bytes = "", msg: str | bytes = "") -> None:
        self.name = name
        self.msg = msg

    def __repr__(self) -> str:
        return f"TransferNotify(name={self.name!r}, msg={self.msg!r})"
