"""A target made of two listening sockets that speaks the protocol as far as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import Any, Callable, Optional

from . import wire

BASE = 0x10_0000_0000  # where the memory of a raw target pretends to be
SIZE = 1 << 30

Handler = Callable[["RawTarget", socket.socket], None]
"""What a port does with one connection. It runs on a thread of its own; the connection is closed when it returns."""

STALL_LIMIT = 60.0  # seconds after which a target that stalls gives up, should the test not have ended by then


class RawTarget:
    """Listens on a handshake and a data port, and hands each connection to `on_handshake` or `on_data`.

    `over` is set when the target is closed: handlers that stall wait for it. The target remembers every connection it
    took in `taken`.
    """

    def __init__(
        self,
        on_data: Optional[Handler] = None,
        on_handshake: Optional[Handler] = None,
        proto: int = 2,
        data_backlog: int = 64,
        changes: Optional[dict[str, Any]] = None,
    ) -> None:
        self.over = threading.Event()
        self.taken = 0
        self._changes = changes or {}
        self._proto = proto
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._handshakes = listen(64)
        self._data = listen(data_backlog)
        self.name = f"127.0.0.1:{self._handshakes.getsockname()[1]}"
        self.data_port = int(self._data.getsockname()[1])
        self._serve(self._handshakes, on_handshake or answer_handshake, counted=False)
        if on_data:
            self._serve(self._data, on_data, counted=True)

    def descriptor(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "protocol": "tcp",
            "tcp_data_port": self.data_port,
            "tcp_proto_version": self._proto,
            "tcp_data_host": "127.0.0.1",
            "buffers": [{"name": "cpu:0", "addr": BASE, "length": SIZE}],
            **self._changes,
        }

    def move_data_port(self, on_data: Handler) -> None:
        """Close the data port and all connections, and listen on another port from now on."""
        gone, self._data = self._data, listen(64)
        self.data_port = int(self._data.getsockname()[1])
        self._serve(self._data, on_data, counted=True)
        with self._lock:
            end(gone, *self._connections)

    def close(self) -> None:
        self.over.set()
        with self._lock:
            end(self._handshakes, self._data, *self._connections)

    def __enter__(self) -> RawTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, listener: socket.socket, handler: Handler, counted: bool) -> None:
        threading.Thread(target=self._accept, args=(listener, handler, counted), daemon=True).start()

    def _accept(self, listener: socket.socket, handler: Handler, counted: bool) -> None:
        while not self.over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.append(connection)
                self.taken += counted
            threading.Thread(target=self._handle, args=(connection, handler), daemon=True).start()

    def _handle(self, connection: socket.socket, handler: Handler) -> None:
        try:
            connection.settimeout(STALL_LIMIT)
            handler(self, connection)
        except OSError:
            pass  # the other side went, or the test ended
        finally:
            with self._lock:
                if connection in self._connections:
                    self._connections.remove(connection)
            connection.close()


def end(*sockets: socket.socket) -> None:
    """Close sockets, also under the feet of threads that wait on them."""
    for s in sockets:
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)
        s.close()


def listen(backlog: int) -> socket.socket:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", 0))
    s.listen(backlog)
    return s


# Handshakes.


def answer_handshake(target: RawTarget, connection: socket.socket) -> None:
    request = wire.read_handshake(connection)
    if request is None:
        return
    answers: dict[int, Any] = {
        wire.METADATA: target.descriptor(),
        wire.NOTIFY: {"name": "", "notify_msg": "success"},
        wire.PROBE: {"status": "success"},
    }
    body = json.dumps(answers.get(request[0], {})).encode()
    connection.sendall(wire.handshake_frame(request[0], body))
    connection.shutdown(socket.SHUT_WR)
    wire.ended(connection)


def reply(*chunks: bytes, keep: bool = False) -> Handler:
    """Answer every handshake with these bytes; then end, or keep the connection."""

    def handler(target: RawTarget, connection: socket.socket) -> None:
        wire.read_handshake(connection)
        for chunk in chunks:
            connection.sendall(chunk)
        if keep:
            stall(target, connection)
        connection.shutdown(socket.SHUT_WR)
        wire.ended(connection)

    return handler


def metadata_reply(body: bytes) -> Handler:
    """Answer every handshake as a metadata request, with this body."""
    return reply(wire.handshake_frame(wire.METADATA, body))


def stall(target: RawTarget, connection: socket.socket) -> None:
    """Take the connection and neither read nor write."""
    target.over.wait(STALL_LIMIT)


# The data port: how it may go wrong.


def swallow(target: RawTarget, connection: socket.socket) -> None:
    """Read all that comes and never answer."""
    while connection.recv(1 << 16):
        pass


def close_at_once(target: RawTarget, connection: socket.socket) -> None:
    """Close without reading."""


def reset_at_once(target: RawTarget, connection: socket.socket) -> None:
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_mid_header(target: RawTarget, connection: socket.socket) -> None:
    """Close after half a header."""
    wire.receive(connection, wire.HEADER.size // 2)


def serve_half(target: RawTarget, connection: socket.socket) -> None:
    """Close in the middle of the payload, whichever way it goes."""
    request = wire.read_header(connection)
    if request is None:
        return
    opcode, _, size = request
    if opcode & ~wire.V2 == wire.WRITE:
        wire.receive(connection, size // 2)
    else:
        status = wire.status_frame(wire.OK) if opcode & wire.V2 else b""
        connection.sendall(status + bytes(size // 2))


def stall_half(target: RawTarget, connection: socket.socket) -> None:
    """Stop in the middle of the payload, whichever way it goes, and keep the connection."""
    serve_half(target, connection)
    stall(target, connection)


def answering(answer: bytes, keep: bool = False) -> Handler:
    """Take the first request whole and answer these bytes; then close, or keep the connection."""

    def handler(target: RawTarget, connection: socket.socket) -> None:
        request = wire.read_header(connection)
        if request is None:
            return
        opcode, _, size = request
        if opcode & ~wire.V2 == wire.WRITE:
            wire.receive(connection, size)
        connection.sendall(answer)
        if keep:
            stall(target, connection)

    return handler


class Store:
    """A data port that works: serves v1 and v2 from `data`, which is what its peers find from BASE on.

    It waits `pause` seconds before it takes a connection's first byte.
    """

    def __init__(self, size: int, pause: float = 0) -> None:
        self.data = bytearray(size)
        self._pause = pause

    def __call__(self, target: RawTarget, connection: socket.socket) -> None:
        target.over.wait(self._pause)
        while True:
            request = wire.read_header(connection)
            if request is None:
                return
            self._serve(connection, *request)

    def _serve(self, connection: socket.socket, opcode: int, address: int, size: int) -> None:
        start = address - BASE
        v2 = bool(opcode & wire.V2)
        if opcode & ~wire.V2 == wire.WRITE:
            self.data[start : start + size] = wire.receive(connection, size)
            connection.sendall(wire.status_frame(wire.OK) if v2 else b"")
        else:
            connection.sendall((wire.status_frame(wire.OK) if v2 else b"") + self.data[start : start + size])
