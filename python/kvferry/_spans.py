"""Spans of OpenTelemetry: how transfers show in the traces of a program that passes a context for them.

opentelemetry-api is imported for the first context, and never without one. docs/operations.md lists the attributes.
"""

from __future__ import annotations

import re
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kvferry import _bindings, _log
from kvferry._bindings import kvferry_outcome_t
from kvferry._ffi import python_string

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

_PATHS = (
    (_bindings.KVFERRY_PATH_TCP, "tcp"),
    (_bindings.KVFERRY_PATH_HOST, "host"),
    (_bindings.KVFERRY_PATH_LOCAL, "local"),
)
_HOST_AND_PORT = re.compile(r"(\[[^\]]+\]|[^@\[\]]+):([0-9]{1,5})")


class Span:
    """The span of one transfer, a child of the program's context. It is made when the transfer has ended, in two steps:
    finish() has the result, and make() gives the span to OpenTelemetry. Any thread may call them."""

    def __init__(self, context: Context, kind: str, peer: str, total: int, runs: int) -> None:
        """Prepare it. kind is "read" or "write", and peer the peer's name; runs is how many ranges have total bytes.

        ImportError without OpenTelemetry's API; TypeError for something else than a context.
        """
        try:
            from opentelemetry.context import Context as Contexts
        except ImportError as e:
            raise ImportError(
                'context= makes spans by OpenTelemetry, which cannot be imported: pip install "kvferry[opentelemetry]"'
            ) from e
        if not isinstance(context, Contexts):
            raise TypeError(
                "context is a Context, as get_current() of opentelemetry.context and set_span_in_context() of "
                f"opentelemetry.trace return it, not {type(context).__name__}"
            )
        self._context = context
        self._name = f"kvferry.{kind}"
        self._attributes: dict[str, Any] = {
            **_address("server", peer),
            "kvferry.total_bytes": total,
            "kvferry.runs": runs,
        }
        self._asked = time.time_ns()
        self._result: tuple[kvferry_outcome_t, int, Exception | None] | None = None
        self._lock = threading.RLock()  # for the result; held while OpenTelemetry is called

    @property
    def traceparent(self) -> bytes | None:
        """The span that the context has, as W3C's Trace Context writes it; None where it has none."""
        from opentelemetry import trace

        of = trace.get_current_span(self._context).get_span_context()
        return b"00-%032x-%016x-%02x" % (of.trace_id, of.span_id, of.trace_flags) if of.is_valid else None

    def finish(self, outcome: kvferry_outcome_t, moved: int, error: Exception | None) -> None:
        """Take the result: how the batch has gone, with zeros where that is not known, the bytes that have arrived, and
        why it has failed. It calls nothing of the program."""
        self._result = outcome, moved, error

    def make(self) -> None:
        """Make the span, if it has a result and is not made. It is made when this returns, whichever thread does it.

        OpenTelemetry calls what the program has told it to. It may take its time, so no lock of the engine is held.
        """
        with self._lock:
            result, self._result = self._result, None
            if result is None:
                return
            try:
                self._make(*result)
            except Exception as e:
                _log.warning("the span of a transfer was not made: %s: %s", type(e).__name__, e)

    def _make(self, outcome: kvferry_outcome_t, moved: int, error: Exception | None) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        began = outcome.began or self._asked
        ended = max(outcome.ended or time.time_ns(), began)
        self._attributes.update(_outcome_attributes(outcome), **{"kvferry.bytes": moved})
        if error is not None:
            self._attributes["error.type"] = f"kvferry.{type(error).__name__}"
        span = _tracer().start_span(
            self._name, self._context, SpanKind.CLIENT, attributes=self._attributes, start_time=began
        )
        if error is not None:
            said = {"exception.type": self._attributes["error.type"], "exception.message": _text(str(error))}
            span.add_event("exception", said, ended)
            span.set_status(Status(StatusCode.ERROR, said["exception.message"]))
        span.end(ended)


@lru_cache(maxsize=1)
def _tracer() -> Tracer:
    """The tracer, which goes to the program's provider, also where that is set later."""
    from opentelemetry import trace

    from kvferry import __version__

    return trace.get_tracer("kvferry", __version__)


def _outcome_attributes(outcome: kvferry_outcome_t) -> dict[str, Any]:
    found: dict[str, Any] = {"kvferry.requests": outcome.requests}
    paths = [name for bit, name in _PATHS if outcome.paths & bit]
    if paths:
        found["kvferry.path"] = paths
    if outcome.trace:
        found["kvferry.batch"] = outcome.trace.decode()
    address = python_string(outcome.address)
    if address:
        found["network.transport"] = "unix" if address.startswith("@") else "tcp"
        found.update(_address("network.peer", address))
    return found


def _address(prefix: str, text: str) -> dict[str, Any]:
    """The attributes of an address: host:port, or what has no port, such as a Unix socket or a name in a store."""
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        return {f"{prefix}.address": _text(text)}
    return {f"{prefix}.address": _text(found[1].strip("[]")), f"{prefix}.port": int(found[2])}


def _text(given: str) -> str:
    """What exporters can encode: a name may be any bytes, which a string has as surrogates."""
    return given.encode("utf-8", "backslashreplace").decode()
