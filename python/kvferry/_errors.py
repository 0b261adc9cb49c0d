"""Errors. Each says who failed, what it did, and why: in its text, and as attributes."""

from __future__ import annotations

import re
from typing import Optional

LONGEST_NAME = 300  # characters of a name that an error shows: a host has 255 at most
UNREACHABLE = (-101, -102, -103, -104, -200)  # codes of the library: there is no way to the peer


class Error(RuntimeError):
    """The root of kvferry's errors. Mistakes in arguments are a TypeError or a ValueError instead."""

    who: str  # the peer's name, or that of the engine; "" where it is this process
    what: str  # what was to be done; "" where the reason says it
    why: str

    def __init__(self, why: str, *, who: str = "", what: str = "") -> None:
        super().__init__(why)
        self.who, self.what, self.why = who, what, why

    def __str__(self) -> str:
        return ": ".join(filter(None, (_line(self.who), self.what, self.why)))


def without_user(text: str) -> str:
    """A text without the user and password in its URLs: some give a URL as the name of a peer."""
    return re.sub(r"\S+", lambda word: _word_without_user(word[0]), text)


def _word_without_user(word: str) -> str:
    scheme, colon, rest = word.partition("://")
    return scheme + colon + rest[rest.rfind("@") + 1 :]


def _line(name: str) -> str:
    """A name as a part of a line: whoever gave it may have made it long, or of control characters."""
    name = without_user(name)
    short = name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


class EngineError(Error):
    """An engine cannot be made."""


class EngineClosed(Error):
    """The engine was closed before, or while the transfer was under way."""


class RegionInUse(Error):
    """Memory was to be taken back, by Region.close() or Offer.revoke(), and something that is stuck may still use it;
    the text names it. kvferry keeps the memory as it is."""


class TransferError(Error):
    """Bytes have not moved as they should. Nothing touches the memory any more, unless the log says that something is
    stuck."""

    done: int  # bytes that are known to have arrived

    def __init__(self, why: str, *, who: str = "", what: str = "", done: int = 0) -> None:
        super().__init__(why, who=who, what=what)
        self.done = done


class PeerUnreachable(TransferError):
    """There is no connection to the peer, it was lost, nothing moves on it, or one side refuses the other."""


class RangeRejected(TransferError):
    """The peer has no such memory registered or does not allow this, or memory of this process cannot be accessed."""

    index: Optional[int]  # of the range, in the order of the call or of the plan; None where it is not known
    local: int  # address of this process; 0 without an index, as the next two
    remote: int  # address of the peer
    nbytes: int

    def __init__(
        self,
        why: str,
        *,
        who: str = "",
        what: str = "",
        done: int = 0,
        index: Optional[int] = None,
        local: int = 0,
        remote: int = 0,
        nbytes: int = 0,
    ) -> None:
        super().__init__(why, who=who, what=what, done=done)
        self.index, self.local, self.remote, self.nbytes = index, local, remote, nbytes


class Revoked(TransferError):
    """The peer has revoked its offer, or the time of the offer is over."""


class TimedOut(TransferError, TimeoutError):
    """The transfer had not ended within its time limit, and was given up."""


class Cancelled(TransferError):
    """The transfer was given up by Transfer.cancel(), or by unregistering its memory."""
