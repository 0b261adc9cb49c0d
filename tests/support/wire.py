"""The wire protocol in a few lines of Python, independent of the engine that is tested."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import Any, Optional

CONNECTION, METADATA, NOTIFY, PROBE = 0, 1, 2, 3
READ, WRITE = 0, 1
V2 = 0x80
OK, REJECTED = 0, 1
MAGIC = 0x4D435456  # "MCTV", the high half of a status frame
HEADER = struct.Struct("<QQB7x")
STATUS = struct.Struct("<Q")
LIMIT = 10.0  # seconds that a raw socket waits


def split_name(name: str) -> tuple[str, int]:
    host, port = name.rsplit(":", 1)
    return host.strip("[]"), int(port)


def connect(address: tuple[str, int], limit: float = LIMIT) -> socket.socket:
    return socket.create_connection(address, timeout=limit)


def receive(connection: socket.socket, length: int) -> bytes:
    """Read exactly `length` bytes; fewer only where the other side closed."""
    parts: list[bytes] = []
    while length > 0:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def send_some(connection: socket.socket, data: bytes) -> None:
    """Send what the other side takes; it may close before it has all."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def ended(connection: socket.socket) -> bool:
    """Tell whether the other side closes without another byte; a reset is an end too."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


# Handshake frames.


def handshake_frame(kind: int, body: bytes) -> bytes:
    return struct.pack("<QB", len(body) + 1, kind) + body


def handshake(name: str, kind: int, body: bytes, limit: float = LIMIT) -> Optional[tuple[int, bytes]]:
    """Send one request to a handshake port; the reply's type and body, or None where it closes without one."""
    with connect(split_name(name), limit) as connection:
        try:
            connection.sendall(handshake_frame(kind, body))
            return read_handshake(connection)
        except ConnectionError:
            return None


def read_handshake(connection: socket.socket) -> Optional[tuple[int, bytes]]:
    head = receive(connection, 9)
    if len(head) < 9:
        return None
    length, kind = struct.unpack("<QB", head)
    return kind, receive(connection, length - 1)


def descriptor(name: str) -> dict[str, Any]:
    """Fetch a peer's segment descriptor."""
    reply = handshake(name, METADATA, b"{}")
    assert reply is not None and reply[0] == METADATA, f"{name} answers no metadata request: {reply!r}"
    found: dict[str, Any] = json.loads(reply[1])
    return found


def data_address(name: str) -> tuple[str, int]:
    """Return where a peer's data port is."""
    return split_name(name)[0], int(descriptor(name)["tcp_data_port"])


# Data frames.


def header(opcode: int, address: int, size: int) -> bytes:
    return HEADER.pack(size, address, opcode)


def read_header(connection: socket.socket) -> Optional[tuple[int, int, int]]:
    """Return opcode, address and size of the next request; None at the end of the connection."""
    data = receive(connection, HEADER.size)
    if len(data) < HEADER.size:
        return None
    size, address, opcode = HEADER.unpack(data)
    return opcode, address, size


def status_frame(code: int) -> bytes:
    return STATUS.pack(MAGIC << 32 | code)


def read_status(connection: socket.socket) -> Optional[int]:
    """Return the code of the next status frame; None where the connection ends before it."""
    try:
        data = receive(connection, STATUS.size)
    except ConnectionError:
        return None
    if len(data) < STATUS.size:
        return None
    (value,) = STATUS.unpack(data)
    assert value >> 32 == MAGIC, f"a status frame starts with {value >> 32:#x}"
    return int(value & 0xFFFFFFFF)
