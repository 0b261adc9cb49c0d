"""The messages of the Python package: lines of the native library's log, beside the library's own.

They have its format, and its settings apply to them: MC_LOG_LEVEL and MC_LOG_DIR. Logging never waits, also where
nobody reads standard error. Any thread may log, in a forked child too.
"""

from __future__ import annotations

from kvferry._bindings import KVFERRY_LOG_ERROR, KVFERRY_LOG_INFO, KVFERRY_LOG_WARNING
from kvferry._errors import without_user
from kvferry._library import load


def info(text: str, *arguments: object) -> None:
    """Log an event of normal operation; the default level leaves it out. text is a format for % and the arguments."""
    _write(KVFERRY_LOG_INFO, text, arguments)


def warning(text: str, *arguments: object) -> None:
    """Log a call that was refused, or another possible problem, as info() does."""
    _write(KVFERRY_LOG_WARNING, text, arguments)


def error(text: str, *arguments: object) -> None:
    """Log a failure, as info() does."""
    _write(KVFERRY_LOG_ERROR, text, arguments)


def _write(level: int, text: str, arguments: tuple[object, ...]) -> None:
    message = text % arguments if arguments else text
    load().kvferry_log(level, without_user(message).encode("utf-8", "backslashreplace").replace(b"\0", b"\\0"))
