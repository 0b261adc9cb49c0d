"""What the checks of kvferry on real devices have in common: parts that run one after the other, each for so long at
most and whatever the others come to, and a report of them, as text and as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from kvferry import __version__

REPOSITORY = Path(__file__).resolve().parent.parent

# What pytest runs of the tests that move memory of devices. One path is enough: devices know nothing of it.
DEVICE_TESTS = ("-m", "devices", "-k", "not samehost", "tests/heterogeneous", "tests/datapath")
TAIL = 200  # lines of a part's end that the JSON has


class Part(NamedTuple):
    """A command, by its arguments."""

    command: Sequence[str]
    limit: float  # seconds
    settings: Mapping[str, str] = {}  # environment variables


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


class Report:
    """Standard output, and a file with the same text; and what is known of each part."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.machine: list[str] = []
        self.parts: dict[str, dict[str, Any]] = {}

    def say(self, text: str) -> None:
        print(text, flush=True)
        print(text, file=self._file, flush=True)

    def tell(self, lines: Iterator[str]) -> None:
        """Say what the machine has, a line each."""
        for line in lines:
            self.machine.append(line)
            self.say(line)

    def run(self, name: str, part: Part) -> bool:
        """Run a part, show what it prints, and keep what came of it; whether it succeeded. It is killed with all that
        it started once its time is over."""
        self.say(f"\n== {name}: {' '.join(part.command)}")
        start = time.monotonic()
        lines: list[str] = []
        process = subprocess.Popen(
            part.command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **part.settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        over = threading.Event()

        def end() -> None:
            over.set()
            kill(process)

        timer = threading.Timer(part.limit, end)
        timer.start()
        try:
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip())
                    self.say(lines[-1])
        finally:
            timer.cancel()
            kill(process)  # what it left behind
        seconds = time.monotonic() - start
        ended = "killed, its time was over" if over.is_set() else f"status {process.returncode}"
        self.say(f"== {name}: {ended} after {seconds:.0f} s")
        self.parts[name] = {
            "command": list(part.command),
            "status": process.returncode,
            "timed_out": over.is_set(),
            "seconds": round(seconds, 1),
            "output": lines[-TAIL:],
        }
        return not over.is_set() and process.returncode == 0

    def say_results(self) -> None:
        """Say what came of each part."""
        for name, part in self.parts.items():
            failed = "FAILED: its time was over" if part["timed_out"] else f"FAILED with status {part['status']}"
            passed = part["status"] == 0 and not part["timed_out"]
            self.say(f"{name}: {'passed' if passed else failed}, {part['seconds']:.0f} s")

    def write_json(self, path: Path, **more: Any) -> None:
        found = {"kvferry": __version__, "machine": self.machine, "parts": self.parts, **more}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def kill(process: subprocess.Popen[str]) -> None:
    """End a part with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def system() -> str:
    """What runs kvferry."""
    processors = f"{os.cpu_count()} processors"
    return f"kvferry {__version__}, Python {platform.python_version()}, {platform.platform()}, {processors}"


def first_lines(command: Sequence[str], limit: float = 60.0) -> Iterator[str]:
    """What a command prints; nothing where it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
        yield from done.stdout.splitlines()
