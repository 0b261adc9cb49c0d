"""Notifications: messages that a transfer delivers to the peer when it has completed."""

from __future__ import annotations

from ctypes import byref, c_int

from kvferry._bindings import Functions, notify_msg_t
from kvferry._ffi import c_string, python_string


def notification(name: str | bytes, text: str | bytes) -> notify_msg_t:
    """A message as the C functions take it. TextError for a text that C cannot have. Bytes that are not UTF-8 arrive as
    U+FFFD."""
    return notify_msg_t(
        c_string(_as_text(name), "the notification name"), c_string(_as_text(text), "the notification text")
    )


def _as_text(message: str | bytes) -> str:
    return message.decode("utf-8", "surrogateescape") if isinstance(message, bytes) else message


def take_notifications(functions: Functions, engine: int) -> list[tuple[str, str]]:
    """Take the names and texts of the messages that the engine received, oldest first."""
    count = c_int(0)
    messages = functions.getNotifsFromEngine(engine, byref(count))
    try:
        return [(python_string(m.name), python_string(m.msg)) for m in messages[: count.value]]
    finally:
        functions.freeNotifsMsgBuf(messages, count.value)
