"""The messages of the Python package, which go to the logger "kvferry" of module logging.

The host decides what its handlers do. One may wait without end, as when standard error is a pipe that nobody reads, and
no call of an engine is to wait with it. So a thread calls the handlers:

1. warning() and error() queue a message for the thread, and wait until the handlers have returned, for MOMENT at most.
   So messages usually come in the order of everything else that the calling thread logs.
2. While a handler has not returned, messages are queued without waiting, up to MOST_QUEUED. Further ones are counted.
3. When the handlers go on, they get what is queued, and a message that says how many were dropped.

A host without handlers gets the messages on standard error, as from module logging. That would hold its locks while it
waits, and the end of the interpreter, and forked children, would wait for these: so here they are written without it.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import os
import queue
import sys
import threading

MOMENT = 0.1  # seconds
MOST_QUEUED = 1000  # messages
EXIT_LIMIT = 1.0  # seconds that the end of the interpreter waits for handlers

WITHOUT_HANDLERS = logging.lastResort  # unless the host puts something else in its place


def warning(text: str, *arguments: object) -> None:
    """Log a warning. text has a place for each of the arguments, as logging wants it. Any thread may call it."""
    _messages.put(logging.WARNING, text, arguments)


def error(text: str, *arguments: object) -> None:
    """Log an error, as warning() does."""
    _messages.put(logging.ERROR, text, arguments)


class _Message:
    def __init__(self, record: logging.LogRecord) -> None:
        self.record = record
        self.context = contextvars.copy_context()  # of the thread that logs: handlers may look at it
        self.handled = threading.Event()


class _Messages:
    """The queue, and the thread, which is started by the first message."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("kvferry")
        # A signal handler that logs may interrupt this very code: nothing here waits for its own thread.
        self._queue: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._lock = threading.RLock()  # for what follows
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._latest: _Message | None = None
        self._late = False  # a handler did not return in time

    def put(self, level: int, text: str, arguments: tuple[object, ...]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        caller = sys._getframe(2)
        code = caller.f_code
        record = self._logger.makeRecord(
            self._logger.name, level, code.co_filename, caller.f_lineno, text, arguments, None, code.co_name
        )
        if threading.current_thread() is self._thread or not self._start():
            self._handle(record)
            return
        if self._queue.qsize() >= MOST_QUEUED:
            with self._lock:
                self._dropped += 1
            return
        self._latest = message = _Message(record)
        self._queue.put(message)
        if not self._late and not message.handled.wait(MOMENT):
            self._late = True

    def _start(self) -> bool:
        """Start the thread, if it does not run; False when the interpreter ends, or there can be no more threads."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="kvferry log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        """Hand messages to the logger. What a handler raises ends the thread, is reported, and the next message starts
        another one."""
        while True:
            message = self._queue.get()
            try:
                message.context.run(self._handle, message.record)
            finally:
                self._late = False
                message.handled.set()
            if self._queue.empty():
                self._tell_dropped()

    def _handle(self, record: logging.LogRecord) -> None:
        if self._logger.hasHandlers() or logging.lastResort is not WITHOUT_HANDLERS:
            self._logger.handle(record)
        elif self._logger.filter(record):
            _write(record.getMessage() + "\n")

    def _tell_dropped(self) -> None:
        with self._lock:
            count, self._dropped = self._dropped, 0
        if count:
            text = f"{count} messages were dropped: the log could not be written"
            self._handle(self._logger.makeRecord(self._logger.name, logging.WARNING, __file__, 0, text, (), None))

    def finish(self) -> None:
        """Wait, for a while, until the handlers have had every message."""
        latest = self._latest
        if latest is not None:
            latest.handled.wait(EXIT_LIMIT)


def _write(text: str) -> None:
    """Write to standard error, or to what the host has in its place."""
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # it has none
        if sys.stderr is not None:
            sys.stderr.write(text)
        return
    left = text.encode(errors="backslashreplace")
    with contextlib.suppress(OSError):  # nobody is left to be told
        while left:
            left = left[os.write(descriptor, left) :]


_messages = _Messages()


def _finish() -> None:
    _messages.finish()


def _after_fork_in_child() -> None:
    """The thread is the parent's."""
    global _messages
    _messages = _Messages()


atexit.register(_finish)
os.register_at_fork(after_in_child=_after_fork_in_child)
