"""What `kvferry serve` and `kvferry bench` say to each other.

The last page of the memory that a server offers is its notice: a text with a checksum, which a bench reads as it reads
any memory. So a bench that looks for one disturbs no other program, and needs no way back to itself.

1. The bench reads the last page of the peer's buffers. If one has a notice, the peer is a server.
2. It sends the server notifications: it asks for a part of the memory, says from time to time that it lives, and says
   that it has ended. Only servers get these.
3. The server fills the part with the pattern, and writes the owners of its parts into the notice. The bench reads that
   until it is in it.
"""

from __future__ import annotations

import json
import secrets
import struct
import zlib
from typing import Any, NamedTuple

PAGE = 4096  # bytes of the notice
MESSAGE = "kvferry-bench"  # the name of the notifications
LEASE = 15.0  # seconds after which a bench that says nothing has lost its part
RENEWAL = 3.0  # seconds between two messages of a bench
LOOK = 0.02  # seconds between two looks of a server at its messages, and of a bench at the notice
MOST_PARTS = 64

_HEAD = struct.Struct("<16sII")  # mark, length of the text, its CRC-32
_MARK = b"kvferry serve 01"


class Notice(NamedTuple):
    """What a server says of itself."""

    size: int  # bytes of all parts together, from the beginning of the buffer
    seed: int  # of the pattern
    place: str  # of the memory, as "host" or "npu:0"
    parts: tuple[str | None, ...]  # the id of the bench that has it, for each

    @property
    def part_size(self) -> int:
        """Bytes of a part."""
        return self.size // len(self.parts) // PAGE * PAGE

    def encode(self) -> bytes:
        """The page."""
        text = json.dumps(self._asdict()).encode()
        page = _HEAD.pack(_MARK, len(text), zlib.crc32(text)) + text
        return page.ljust(PAGE, b"\0")

    @staticmethod
    def decode(page: bytes) -> Notice | None:
        """The notice of a page; None where there is none, or one that is being written."""
        mark, length, checksum = _HEAD.unpack_from(page)
        text = page[_HEAD.size : _HEAD.size + length]
        if mark != _MARK or len(text) != length or zlib.crc32(text) != checksum:
            return None
        try:
            notice = Notice(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        notice = notice._replace(parts=tuple(notice.parts))
        numbers = isinstance(notice.size, int) and isinstance(notice.seed, int) and isinstance(notice.place, str)
        return notice if numbers and 0 < len(notice.parts) <= MOST_PARTS and notice.part_size > 0 else None


class Request(NamedTuple):
    """What a bench asks for."""

    id: str
    do: str  # one of DOINGS

    def encode(self) -> str:
        """The text of the notification."""
        return json.dumps(self._asdict())

    @staticmethod
    def decode(text: str) -> Request | None:
        """The request in a notification; None for a text of anybody else."""
        try:
            found: Any = json.loads(text)
            request = Request(found["id"], found["do"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        identified = isinstance(request.id, str) and len(request.id) == ID and request.id.isalnum()
        return request if identified and request.do in DOINGS else None


BEGIN, RENEW, END = "begin", "renew", "end"
DOINGS = (BEGIN, RENEW, END)
ID = 16  # characters


def new_id() -> str:
    """An id for a bench."""
    return secrets.token_hex(ID // 2)
