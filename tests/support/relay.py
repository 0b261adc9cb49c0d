"""A middle man: takes connections that were meant for an engine, passes them on, records them, may alter a byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Optional

from .rawpeer import end

TO_TARGET, TO_INITIATOR = "to the target", "to the initiator"


@dataclass
class Recorded:
    """What has passed on a connection so far, by directions."""

    port: int
    passed: dict[str, bytearray] = field(default_factory=lambda: {TO_TARGET: bytearray(), TO_INITIATOR: bytearray()})


@dataclass(frozen=True)
class Alteration:
    """Which byte is altered of each connection to a port: of one direction, counted from its first byte."""

    port: int
    direction: str
    offset: int


class Relay:
    """Listens at an address on the ports of an engine that listens at another one."""

    def __init__(self, here: str, there: str, ports: Sequence[int]) -> None:
        self.recorded: list[Recorded] = []
        self.alteration: Optional[Alteration] = None
        self._there = there
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listeners = [socket.create_server((here, port)) for port in ports]
        for listener, port in zip(self._listeners, ports):
            threading.Thread(target=self._accept, args=(listener, port), daemon=True).start()

    def close(self) -> None:
        with self._lock:
            end(*self._listeners, *self._open)

    def _accept(self, listener: socket.socket, port: int) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                try:
                    initiator, _ = listener.accept()
                except OSError:
                    return
                self._join(initiator, socket.create_connection((self._there, port)), port)

    def _join(self, initiator: socket.socket, target: socket.socket, port: int) -> None:
        connection = Recorded(port)
        with self._lock:
            self._open += [initiator, target]
            self.recorded.append(connection)
        for direction, source, sink in ((TO_TARGET, initiator, target), (TO_INITIATOR, target, initiator)):
            threading.Thread(target=self._pass, args=(connection, direction, source, sink), daemon=True).start()

    def _pass(self, connection: Recorded, direction: str, source: socket.socket, sink: socket.socket) -> None:
        passed = connection.passed[direction]
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                sink.sendall(self._altered(part, connection.port, direction, len(passed)))
                passed += part
            sink.shutdown(socket.SHUT_WR)
            return
        end(source, sink)  # a reset goes on to the other side

    def _altered(self, part: bytes, port: int, direction: str, start: int) -> bytes:
        alteration = self.alteration
        if alteration is None or (alteration.port, alteration.direction) != (port, direction):
            return part
        at = alteration.offset - start
        if not 0 <= at < len(part):
            return part
        return part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]


@contextlib.contextmanager
def relaying(here: str, there: str, ports: Sequence[int]) -> Iterator[Relay]:
    relay = Relay(here, there, ports)
    try:
        yield relay
    finally:
        relay.close()
