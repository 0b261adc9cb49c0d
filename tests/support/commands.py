"""The kvferry command as a process."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .inprocess import environment

LIMIT = 60.0  # seconds that a command may take


def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start the command with these arguments and environment variables."""
    return subprocess.Popen(
        [sys.executable, "-m", "kvferry", *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, **settings: str) -> tuple[int, str, str]:
    """Run the command. Its exit status, and what it has printed on standard output and standard error."""
    process = start(*arguments, **settings)
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, out, err


def result(*arguments: str, **settings: str) -> Any:
    """Run the command with --json, which must succeed, and return the value."""
    status, out, err = run("--json", *arguments, **settings)
    assert status == 0, (out, err)
    return json.loads(out)


class Running:
    """A command that runs until it is told to end."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        self.process = start(*arguments, **settings)
        self.printed: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of standard output that a regular expression is found in."""
        while True:
            line = self._lines.get(timeout=LIMIT)
            self.printed.append(line)
            found = re.search(pattern, line)
            if found:
                return found
            assert line, f"{pattern} is not in {self.printed}: {self.process.communicate()[1]}"

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


@contextmanager
def running(*arguments: str, **settings: str) -> Iterator[Running]:
    """A command that runs within the block."""
    made = Running(*arguments, **settings)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(LIMIT)


@contextmanager
def serving(*arguments: str, **settings: str) -> Iterator[tuple[str, Running]]:
    """A `kvferry serve` on the loopback device: what peers open, and the command."""
    with running("-v", "serve", "--name", "127.0.0.1", *arguments, **settings) as made:
        yield made.line(r"^kvferry bench (\S+)$")[1], made
