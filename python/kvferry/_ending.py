"""The end of an engine, which Ctrl-C cannot prevent.

A signal handler that raises, as that of Ctrl-C does, runs between two steps of Python code. Python code that leads to
kvferry_destroy may therefore never get there, and the engine would go on without an owner. So:

1. `Ending.destroy` consists of built-in functions only, and CPython runs no signal handler within them. Its iterator
   has one item, so kvferry_destroy is called once, however often `destroy` is.
2. Python calls `destroy` when the last reference to the owner goes: `Ending` is a weak reference with that callback.
3. `_endings` keeps the memory that the engine handed out until kvferry_destroy has said that nothing uses it.
"""

from __future__ import annotations

import functools
import operator
import weakref

from kvferry import _log
from kvferry._bindings import KVFERRY_ERR_IN_USE, Functions
from kvferry._ffi import last_error

_endings: set[Ending] = set()  # of engines that live, and of those that were closed while something used their memory


class Ending(weakref.ref[object]):
    """The end of one engine. Any thread may call it."""

    __slots__ = ("_codes", "_functions", "_memory", "_told", "destroy")

    def __new__(cls, owner: object, functions: Functions, handle: int, memory: object) -> Ending:
        return super().__new__(cls, owner, operator.methodcaller("destroy"))

    def __init__(self, owner: object, functions: Functions, handle: int, memory: object) -> None:
        """The engine ends with its owner. memory is kept as long as the engine may use it."""
        self._codes: list[int] = []  # what kvferry_destroy returned
        self._functions = functions
        self._memory: object = memory
        self._told = False  # what is stuck
        self.destroy = functools.partial(self._codes.extend, map(functions.kvferry_destroy, (handle,)))
        for ending in list(_endings):
            if ending.stuck is False:  # Ctrl-C came after kvferry_destroy, and before forget()
                ending.forget()
        _endings.add(self)

    @property
    def stuck(self) -> bool | None:
        """None until the engine has ended. Then whether something is stuck that may use memory still."""
        return self._codes[0] == KVFERRY_ERR_IN_USE if self._codes else None

    def run(self) -> None:
        """End the engine, if it has not ended. The log says what is stuck, whose memory is never given back."""
        self.destroy()
        if self.stuck is False:
            self.forget()
        elif self.stuck and not self._told:
            self._told = True
            _log.error("an engine was closed: %s", last_error(self._functions))

    def forget(self) -> None:
        """Let go of the memory."""
        self._memory = None
        _endings.discard(self)
