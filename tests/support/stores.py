"""Metadata stores that are not ours, as processes."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Optional

from . import venvs
from .ports import free_ports

LIMIT = 30.0  # seconds that a server may take for anything


class Server:
    """A metadata store on a port of the loopback device, which it keeps over restarts."""

    def __init__(self, address: str, host: str, port: int, log_path: Path, command: list[str]) -> None:
        self.address = address
        """What engines take for a connection string."""
        self._host, self._port, self._log_path, self._command = host, port, log_path, command
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self._log_path, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + LIMIT
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._command[0]} does not run: {self._log_path.read_text()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self._host, self._port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LIMIT)

    def get(self, key: str) -> Optional[Any]:
        """Return what the JSON under a key says, or None where there is no such key."""
        value = self.read(key)
        return None if value is None else json.loads(value)

    def read(self, key: str) -> Optional[bytes]:
        raise NotImplementedError

    def put(self, key: str, value: bytes) -> None:
        raise NotImplementedError


class MooncakeServer(Server):
    """Mooncake's HTTP metadata server, which forgets everything when it ends."""

    def __init__(self, version: str, log_path: Path, host: str = "127.0.0.1") -> None:
        (port,) = free_ports(1)
        shown = f"[{host}]" if ":" in host else host
        command = [*venvs.http_metadata_server(version), "--host", host, "--port", str(port)]
        super().__init__(f"http://{shown}:{port}/metadata", host, port, log_path, command)

    def read(self, key: str) -> Optional[bytes]:
        return self._ask("GET", key)

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


class EtcdServer(Server):
    """A cluster of one etcd server."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("etcd")
        if program is None:
            raise venvs.Unavailable("etcd is missing: apt-get install etcd-server")
        port, peer_port = free_ports(2)
        self._url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        clients = ["--listen-client-urls", self._url, "--advertise-client-urls", self._url]
        peers = ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"]
        command = [program, "--name", "one", "--data-dir", str(folder / "data"), *clients, *peers]
        super().__init__(f"etcd://127.0.0.1:{port}", "127.0.0.1", port, folder / "etcd.log", command)

    def read(self, key: str) -> Optional[bytes]:
        found = self._ask("range", {"key": encoded(key.encode())}).get("kvs", [])
        return base64.b64decode(found[0].get("value", "")) if found else None

    def put(self, key: str, value: bytes) -> None:
        self._ask("put", {"key": encoded(key.encode()), "value": encoded(value)})

    def _ask(self, what: str, request: dict[str, str]) -> Any:
        with urllib.request.urlopen(f"{self._url}/v3/kv/{what}", json.dumps(request).encode(), timeout=LIMIT) as answer:
            return json.load(answer)


class RedisServer(Server):
    """A Redis server with a password, which forgets everything when it ends."""

    PASSWORD = "the password"

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise venvs.Unavailable("redis-server is missing: apt-get install redis-server")
        (port,) = free_ports(1)
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
        command += ["--requirepass", self.PASSWORD]
        super().__init__(f"redis://127.0.0.1:{port}", "127.0.0.1", port, folder / "redis.log", command)


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
