"""Metadata stores that are not ours, as processes."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Optional

from . import ports, venvs

LIMIT = 30.0  # seconds that a server may take for anything


class MooncakeServer:
    """Mooncake's HTTP metadata server on a port of the loopback device, which it keeps over restarts."""

    def __init__(self, version: str, log_path: Path, host: str = "127.0.0.1") -> None:
        (held,) = ports.hold_range(1)
        self.port = ports.port_of(held)
        held.close()
        self.host = host
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/metadata"
        """What engines take for a connection string."""
        self._command = [*venvs.http_metadata_server(version), "--host", host, "--port", str(self.port)]
        self._log_path = log_path
        self.start()

    def start(self) -> None:
        """Start it, with nothing in it, and wait until it listens."""
        with open(self._log_path, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + LIMIT
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Mooncake's metadata server does not run: {self._log_path.read_text()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        """End it as SIGKILL does; what it holds is lost."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LIMIT)

    def get(self, key: str) -> Optional[Any]:
        """Return what the JSON under a key says, or None where there is no such key."""
        value = self._ask("GET", key)
        return None if value is None else json.loads(value)

    def put(self, key: str, value: bytes) -> None:
        self._ask("PUT", key, value)

    def _ask(self, method: str, key: str, value: Optional[bytes] = None) -> Optional[bytes]:
        url = f"{self.address}?key={urllib.parse.quote(key, safe='')}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, value, method=method), timeout=LIMIT) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 404:
                    raise
            return None
