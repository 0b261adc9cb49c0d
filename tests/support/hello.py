"""What our engines say first on a data connection, in a few lines of Python; and how one reaches them on one host."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Optional

from . import paths, wire
from .memory import Memory

HEAD = struct.Struct("<QQBBHI")  # 0 · magic · opcode · version · 0 · length of the body
BODY = struct.Struct("<16sQ16sQQ")  # origin · number · target · number of a former connection · address of the permit
ANSWER = struct.Struct("<II16sQQ")  # version · length of what follows · target · flags · age in ns; after a status
MAGIC = int.from_bytes(b"vkHello\x01", "little")
OPCODE, VERSION = 0x82, 1
OTHER_ENGINE, OUT_OF_REACH = 4, 3  # codes of a status frame
COPIES, STRIDED = 1, 2  # of the flags of an answer: the target copies by the permit, and takes strided requests

BY_ADDRESS = 0x40  # of an opcode: the payload is named by its address

PAGE = PERMIT_SIZE = 4096
NONCE = slice(64, 80)
REVOKED = struct.pack("<I", 3)
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


Connect = Callable[[], socket.socket]
"""Makes a connection to the engine that a test is about."""


class Permit:
    """Memory that this process shares with a target, by which the target copies from this process."""

    def __init__(self, size: int = PERMIT_SIZE, seals: int = SEALS) -> None:
        self.file = os.memfd_create("permit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.file, size)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, seals)
        self._page = mmap.mmap(self.file, size)
        self._page[NONCE] = os.urandom(16)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    def revoke(self) -> None:
        self._page[:4] = REVOKED

    def close(self) -> None:
        os.close(self.file)


@dataclass
class Hello:
    """A hello for the engine with an identity, of another engine that nobody knows."""

    target: bytes
    number: int = 1
    ends: int = 0
    permit_at: int = 0
    origin: bytes = field(default_factory=lambda: os.urandom(16))
    version: int = VERSION
    length: Optional[int] = None  # that it claims to have
    more: bytes = b""  # at its end, as a later version might have

    def encode(self) -> bytes:
        body = BODY.pack(self.origin, self.number, self.target, self.ends, self.permit_at) + self.more
        length = len(body) if self.length is None else self.length
        return HEAD.pack(0, MAGIC, OPCODE, self.version, 0, length) + body


@dataclass
class Answer:
    code: int
    target: bytes
    flags: int
    age: float  # seconds


def identity(name: str) -> bytes:
    """Return the identity of an engine."""
    return bytes.fromhex(wire.descriptor(name)["kvferry"]["identity"])


def connect_on_host(name: str) -> socket.socket:
    """Connect to an engine of this host, not by TCP."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(wire.LIMIT)
    connection.connect("\0" + wire.descriptor(name)["kvferry"]["neighbour"])
    return connection


def connect(name: str, path: str) -> socket.socket:
    """Connect to an engine of this machine by a path; see paths.py."""
    return connect_on_host(name) if path == paths.SAMEHOST else wire.connect(wire.data_address(name))


def say(connection: socket.socket, data: bytes, files: Sequence[int] = ()) -> None:
    """Send bytes, with file descriptors. The other side may close before it has all."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    with contextlib.suppress(ConnectionError):
        sent = connection.sendmsg([data], rights)
        connection.sendall(data[sent:])


def read_answer(connection: socket.socket) -> Optional[Answer]:
    """Return what a target answers to a hello; None where it ends the connection instead."""
    code = wire.read_status(connection)
    if code is None:
        return None
    _, length, target, flags, age = ANSWER.unpack(wire.receive(connection, ANSWER.size))
    assert length == ANSWER.size - 8
    return Answer(code, target, flags, age / 1e9)


def write_by_address(address: int, size: int, source: int) -> bytes:
    """Return the request that a target copies `size` bytes to `address` from `source` in the initiator's process."""
    return wire.HEADER.pack(size, address, wire.WRITE | wire.V2 | BY_ADDRESS)[:17] + source.to_bytes(7, "little")


@contextlib.contextmanager
def greeted(name: str, permit: Optional[Permit] = None) -> Iterator[tuple[socket.socket, Answer]]:
    """Connect to an engine of this host, and greet it."""
    with connect_on_host(name) as connection:
        hello = Hello(identity(name), permit_at=permit.address if permit else 0)
        say(connection, hello.encode(), [permit.file] if permit else [])
        answer = read_answer(connection)
        assert answer is not None and answer.code == wire.OK
        yield connection, answer


def serves(connection: socket.socket, memory: Memory) -> bool:
    """Tell whether a READ on the connection is answered with what is there."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(wire.header(wire.READ | wire.V2, memory.address, PAGE))
        if wire.read_status(connection) == wire.OK:
            return wire.receive(connection, PAGE) == memory.model[:PAGE]
    return False
