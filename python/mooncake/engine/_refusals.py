"""Failures as Mooncake has them: a call returns a failure value, and the log says why it failed."""

from __future__ import annotations

import functools
from typing import Any, Callable, TypeVar, cast

from kvferry import _log
from kvferry._ffi import TextError

Method = TypeVar("Method", bound=Callable[..., Any])

NOT_INITIALIZED = "the engine is not initialized"


class Refused(Exception):
    """Ends a call with a failure value. The text is the reason, for the log."""

    def __init__(self, reason: str, value: Any = None) -> None:
        """value is the failure value, where it is not the usual one of the call."""
        super().__init__(reason)
        self.value = value


REASONS = (Refused, TextError)  # these end a call with a failure value; any other exception is raised


def refused(call: str, reason: str | Exception, usual: Any = -1) -> Any:
    """Log why a call failed. The failure value: that of the reason, or else the usual one."""
    _log.warning("%s: %s", call, reason)
    value = getattr(reason, "value", None)
    return usual if value is None else value


def fails_as(usual: Any) -> Callable[[Method], Method]:
    """Let a method return the failure value where it raises Refused, and have the reason logged."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except REASONS as e:
                return refused(method.__name__, e, usual)

        return cast(Method, call)

    return decorate
