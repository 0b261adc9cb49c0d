"""Programs on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import Any, Callable

from .inprocess import environment

LIMIT = 60.0  # seconds in which something has to be shown


class Terminal:
    """A terminal of some size with a program on it, which is killed after the block."""

    def __init__(self, columns: int, rows: int, *command: str, **settings: str) -> None:
        self._here, there = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            command,
            env=environment(**{"TERM": "xterm", "COLUMNS": "0", "LINES": "0", **settings}),
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
        )
        os.close(there)
        self._bytes = b""

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._here, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def shown(self) -> str:
        """All that the program has written so far."""
        return self._bytes.decode(errors="replace")

    def until(self, condition: Callable[[str], bool]) -> None:
        """Read until the condition holds for what was written."""
        deadline = time.monotonic() + LIMIT
        while not condition(self.shown):
            assert time.monotonic() < deadline and self._read(deadline - time.monotonic()), self.shown

    def end(self) -> int:
        """Read until the program has ended: its exit status."""
        deadline = time.monotonic() + LIMIT
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(LIMIT)

    def _read(self, limit: float) -> bool:
        """Read some of it. False at the end, or when the time is over."""
        if not select.select([self._here], [], [], max(limit, 0))[0]:
            return False
        try:
            read = os.read(self._here, 1 << 16)
        except OSError:  # the terminal has no writer any more
            return False
        self._bytes += read
        return bool(read)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._here)
