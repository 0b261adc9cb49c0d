"""Offers: blocks of this process that whoever knows a key may read or write, until they are revoked. docs/layouts.md
describes them."""

from __future__ import annotations

import functools
import math
from ctypes import byref, create_string_buffer
from typing import TYPE_CHECKING, Any

from kvferry import _access
from kvferry._bindings import (
    KVFERRY_OFFER_ONCE,
    KVFERRY_OFFER_READ,
    KVFERRY_OFFER_WRITE,
    KVFERRY_OFFERED,
    KVFERRY_OK,
    Functions,
)
from kvferry._errors import Error, RegionInUse
from kvferry._ffi import U64Array, c_string, flag, last_error, python_string, u64
from kvferry._layouts import Handle, Place
from kvferry._library import load
from kvferry._managed import Managed, OfProcess
from kvferry._waiting import limit, milliseconds

if TYPE_CHECKING:
    from kvferry._native import Engine

ACCESS = {
    "read": KVFERRY_OFFER_READ,
    "write": KVFERRY_OFFER_WRITE,
    "read-write": KVFERRY_OFFER_READ | KVFERRY_OFFER_WRITE,
}
_ROOM = 1 << 16  # bytes: what most texts fit


class Offer(OfProcess, Managed):
    """Blocks or slots of this process, offered to one peer. Engine.offer() makes it; it keeps the engine.

    Any thread may use it. revoke(), close(), the end of a with block, or the last reference ends it. The memory itself
    is the program's, who registers it, with any access.
    """

    _instead = ": send its json()"

    def __init__(self, engine: Engine, place: Place, access: str, once: bool, lifetime: float | None) -> None:
        if not isinstance(place, Place) or isinstance(place.layout, Offered):
            kind = (
                "an Offered, which is memory of another process" if isinstance(place, Place) else type(place).__name__
            )
            raise TypeError(f"what is offered is Layout.blocks() or Layout.slots(), not {kind}")
        flags = _access.flags(access, ACCESS) | (KVFERRY_OFFER_ONCE if flag(once, "once") else 0)
        life = math.inf if lifetime is None else limit(lifetime, "the lifetime of an offer")
        self.engine = engine
        self._functions, handle = engine.native
        most = 0 if life == math.inf else milliseconds(life)
        made = self._functions.kvferry_offer_make(handle, byref(place.entry(self._functions)), flags, most)
        if not made:
            raise ValueError(last_error(self._functions))
        self._handle = made
        super().__init__(functools.partial(self._functions.kvferry_offer_free, made))
        self._finalizer.atexit = False  # type: ignore[misc] # the engine ends, and with it the offer
        self._text = _text(self._functions, self._functions.kvferry_offer_text, made)

    def json(self) -> str:
        """The text for the peer: JSON in one line. Whoever has it has the key: keep it secret."""
        return self._text

    def revoke(self) -> None:
        """End the offer. When it returns, no byte can land by it any more, and later ones are refused: the blocks can
        be given to somebody else, while their region stays registered.

        It takes about a millisecond where peers are alive. RegionInUse where something stuck may still move bytes,
        after some seconds: another call waits again. It may be called again.
        """
        self.engine.check_fork()
        if not self.closed and self._functions.kvferry_offer_revoke(self._handle) != KVFERRY_OK:
            reason = last_error(self._functions)
            if not self.closed and not self.engine.closed:  # the end of the engine has ended it, too
                raise RegionInUse(reason, who=self.engine.name, what="revoke an offer")

    def close(self) -> None:
        """revoke(), and forget the offer, whatever the result. A second call does nothing."""
        try:
            self.revoke()
        finally:
            super().close()

    def __repr__(self) -> str:
        return f"<Offer of {self.engine.name}{', closed' if self.closed else ''}>"


class Offered:
    """An offer of another process. It does not change; any thread may use it.

    It takes the place of the peer's side in a plan: plan(mine, offered, tokens). Engine.open() opens the engine that
    has made it. It can be pickled, and has the key then, too.
    """

    def __init__(self, text: str) -> None:
        """Read the text of an offer, which may come from anybody. ValueError says what is wrong with it."""
        self._written = c_string(text, "the text of an offer")
        self._handle = self._parse(load())
        functions = self._handle.functions
        self.engine = _text(functions, functions.kvferry_offered_engine, self._handle.number)

    def _parse(self, functions: Functions) -> Handle:
        return Handle(functions, functions.kvferry_offered_parse, functions.kvferry_offered_free, self._written)

    def handle(self, functions: Functions) -> int:
        """The offer's handle in a loaded copy of the library, as long as this object lives."""
        if self._handle.functions is not functions:  # this process was forked meanwhile
            self._handle = self._parse(functions)
        return self._handle.number

    def __reduce__(self) -> tuple[Any, ...]:
        return Offered, (self._written.decode(),)

    def place(self, first: int = 0) -> Place:
        """What a plan takes: from the position first on, counted from the first one that is offered."""
        return Place(self, U64Array(0, 0, b""), u64(first, "first"), KVFERRY_OFFERED)

    def __repr__(self) -> str:
        return f"<Offered by {self.engine}>"


def _text(functions: Functions, read: Any, handle: int) -> str:
    """A text of the library, of any length."""
    room = _ROOM
    while True:
        buffer = create_string_buffer(room)
        length = read(handle, buffer, room)
        if length < 0:
            raise Error(last_error(functions))
        if length < room:
            return python_string(buffer.value)
        room = length + 1
