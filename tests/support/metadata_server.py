"""kvferry metadata-server as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from . import venvs
from .peer import environment

NOTHING: Mapping[str, str] = MappingProxyType({})
LIMIT = 30.0  # seconds that the server may take for anything


class MetadataServer:
    """A server that runs, by default on a free port of the loopback device. Standard error goes to `log_path`."""

    def __init__(self, log_path: Path, *options: str, port: int = 0, settings: Mapping[str, str] = NOTHING) -> None:
        """Start it; `settings` are environment variables. AssertionError with what it printed when it does not run."""
        self.log_path = log_path
        command = [sys.executable, "-m", "kvferry", "metadata-server", "--host=127.0.0.1", f"--port={port}", *options]
        env = environment({**venvs.ours(), **settings}, ours=True)
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        """The connection string that it printed."""
        if not self.address:
            self.process.wait(LIMIT)
            raise AssertionError(f"the metadata server does not run: {self.log()}")
        self.port = urllib.parse.urlsplit(self.address).port or 0

    def log(self) -> str:
        return self.log_path.read_text()

    def ask(self, method: str, key: str, value: Optional[str] = None, token: str = "") -> tuple[int, str]:
        """Send a request for a key, and return the status and the text of the answer."""
        return request(method, f"{self.address}?key={urllib.parse.quote(key, safe='')}", value, token)

    def look(self, path: str) -> tuple[int, str]:
        """Get another path than the metadata's."""
        return request("GET", urllib.parse.urljoin(self.address, path))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def __enter__(self) -> MetadataServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait(LIMIT)


def request(method: str, url: str, value: Optional[str] = None, token: str = "", **how: Any) -> tuple[int, str]:
    """Send a request, and return the status and the text of the answer."""
    header = {"Authorization": f"Bearer {token}"} if token else {}
    asked = urllib.request.Request(url, None if value is None else value.encode(), header, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=LIMIT, **how) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()
