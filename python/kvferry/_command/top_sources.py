"""Where `kvferry top` gets what engines say of themselves: /stats of their processes (core/metrics/exporter).

The engines of this user have a socket in a folder of the user's for each process. Others are named by their address,
which is their KVFERRY_METRICS_LISTEN.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import socket
import stat
import time
import typing
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

from kvferry._options import takes
from kvferry.stats import Stats

FOLDER = "KVFERRY_SOCKET_DIR"
AUTO, OFF = "auto", "off"
SUFFIX = ".sock"
PATIENCE = 3.0  # seconds for an answer
LARGEST = 64 << 20  # bytes of an answer
AT_ONCE = 16
MOST_SOCKETS = 1024
OF_OTHERS = 0o077  # permissions that nobody but its owner may have in the folder


class SourceError(RuntimeError):
    """A source cannot be read; the text says why."""


class Source(NamedTuple):
    """A process with engines."""

    address: str  # HOST:PORT, or unix:PATH
    pid: int | None  # None where it is not known

    @property
    def path(self) -> str | None:
        """The path of its socket; None where it has a port."""
        return self.address[5:] if self.address.startswith("unix:") else None


class Reading(NamedTuple):
    """What a source has said."""

    source: Source
    time: float  # by time.monotonic()
    engines: list[Stats]
    problem: str | None  # why it has said nothing


def folder() -> Path | None:
    """The folder of this user's sockets; None where the environment says that there is none."""
    return folder_of(os.environ.get(FOLDER, AUTO))


def folder_of(named: str) -> Path | None:
    """folder() with that setting in the environment."""
    if named == OFF:
        return None
    # Engines take the default for what is no path, or has control characters.
    valid = named.startswith("/") and all(unicodedata.category(character) != "Cc" for character in named)
    return Path(named if valid else f"/tmp/kvferry-{os.geteuid()}")


def found() -> list[Source]:
    """The sources in the folder. SourceError where it is not this user's alone."""
    where = folder()
    if where is None:
        return []
    try:
        about = where.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & OF_OTHERS:
            raise SourceError(f"{where} is no folder of this user alone, which engines' sockets are in")
        paths = sorted(path for path in where.iterdir() if path.name.endswith(SUFFIX) and path.is_socket())
    except FileNotFoundError:
        return []
    except OSError as e:
        raise SourceError(str(e)) from e
    return [Source(f"unix:{path}", _pid_of(path.name)) for path in paths[:MOST_SOCKETS]]


def _pid_of(name: str) -> int | None:
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else None


@takes("HOST:PORT, or unix:/ and a path")
def address(text: str) -> str:
    """An address as KVFERRY_METRICS_LISTEN has it; ValueError for any other text."""
    if text.startswith("unix:/"):
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(text)
    return text


def read_all(sources: Iterable[Source]) -> list[Reading]:
    """Ask all sources, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_read, sources))


def _read(source: Source) -> Reading:
    try:
        return Reading(source, time.monotonic(), _ask(source), None)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as e:
        return Reading(source, time.monotonic(), [], f"{type(e).__name__}: {e}" if not str(e) else str(e))


def _ask(source: Source) -> list[Stats]:
    """The engines of a source. OSError, HTTPException or ValueError where it does not say."""
    connection = _Connection(source)
    try:
        connection.request("GET", "/stats", headers={"Host": "localhost"})
        answer = connection.getresponse()
        text = answer.read(LARGEST + 1)
        if answer.status != http.client.OK:
            raise ValueError(f"it answers {answer.status} {answer.reason}")
        if len(text) > LARGEST:
            raise ValueError(f"its answer has more than {LARGEST} bytes")
        return _checked(json.loads(text))
    finally:
        connection.close()


class _InTime(socket.socket):
    """A connected socket. An answer that is not complete within PATIENCE is a TimeoutError, however slowly it comes."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(fileno=connected.detach())
        self._until = time.monotonic() + PATIENCE
        self.settimeout(PATIENCE)

    def recv_into(self, *arguments: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)
        return super().recv_into(*arguments)


class _Connection(http.client.HTTPConnection):
    """A connection to a source, at a port or at a socket of the file system."""

    def __init__(self, source: Source) -> None:
        host, _, port = source.address.rpartition(":")
        self._path = source.path
        super().__init__("localhost" if self._path else host.strip("[]"), None if self._path else int(port))

    def connect(self) -> None:
        if self._path is None:
            made = socket.create_connection((self.host, self.port), PATIENCE)
        else:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(PATIENCE)
            made.connect(self._path)
        self.sock = _InTime(made)


def _checked(value: Any) -> list[Stats]:
    """An answer that describes engines. ValueError for any other."""
    if not _fits(value, list[Stats]):
        raise ValueError("it is no kvferry engine, or one of another version")
    return cast("list[Stats]", value)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type: a TypedDict, a list, a dict, a text, or a number that is not negative."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(one, arguments[1]) for one in value.values())
    if kind is str:
        return isinstance(value, str)
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and 0 <= value < 2**64
    return isinstance(value, dict) and all(key in value and _fits(value[key], of) for key, of in _hints(kind).items())


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
