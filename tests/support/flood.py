"""A stranger that floods an engine with connections of one kind, until its standard input ends:

    python -m support.flood KIND SOURCE HOST HANDSHAKE_PORT DATA_PORT ADDRESS

It connects from the address SOURCE. ADDRESS is where the engine has memory. It prints how many connections it has made,
now and then.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Callable, NamedTuple

from . import hello, wire

HELD = 160  # connections that are kept at once: more than the engine serves
SLOW = 100  # connections that hold staging memory
LARGE = 4 << 20  # bytes of a READ that a slow one asks for
NOTIFICATION = 128 << 10  # bytes
PAUSE = 0.0005  # seconds between two connections: both sides and the honest engines share the processors
LIMIT = 2.0  # seconds that a connection waits
TOLD_EVERY = 20  # connections
IP_BIND_ADDRESS_NO_PORT = 24


made = itertools.count(1)


class Target(NamedTuple):
    source: str
    host: str
    handshakes: int
    data: int
    address: int

    def dial(self, port: int, buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(LIMIT)
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((self.source, 0))
        connection.connect((self.host, port))
        if (number := next(made)) % TOLD_EVERY == 0:
            print(number, flush=True)
        return connection


Act = Callable[[Target, int], None]
"""What a stranger does the n-th time. It may raise OSError."""

held: collections.deque[socket.socket] = collections.deque()


def keep(connection: socket.socket, most: int = HELD) -> None:
    held.append(connection)
    while len(held) > most:
        held.popleft().close()


def holding(at_handshakes: bytes, at_data: bytes) -> Act:
    """Connect to one port and the other by turns, send this, and stay."""

    def act(target: Target, n: int) -> None:
        connection = target.dial((target.handshakes, target.data)[n % 2])
        keep(connection)
        connection.sendall((at_handshakes, at_data)[n % 2])

    return act


def client_hello() -> bytes:
    """Return what a TLS client sends first."""
    sent = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["kvferry/1"])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


def reset(target: Target, n: int) -> None:
    connection = target.dial((target.handshakes, target.data)[n % 2])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def garbage(target: Target, n: int) -> None:
    connection = target.dial((target.handshakes, target.data)[n % 2])
    keep(connection)
    connection.sendall(os.urandom(1 + n * 37 % 5000))


def asking(kind: int, body: bytes) -> Act:
    """Send a whole request to the handshake port, and read the answer."""

    def act(target: Target, n: int) -> None:
        with target.dial(target.handshakes) as connection:
            connection.sendall(wire.handshake_frame(kind, body))
            wire.read_handshake(connection)

    return act


def drip(target: Target, n: int) -> None:
    """Send a byte of a frame now and then, so that something always moves."""
    keep(target.dial(target.handshakes))
    held[-1].sendall(struct.pack("<QB", 1 << 19, wire.NOTIFY))
    for connection in itertools.islice(held, n % 7, None, 7):
        with contextlib.suppress(OSError):
            connection.send(b" ")


def idle(target: Target, n: int) -> None:
    """Read a little, and stay."""
    connection = target.dial(target.data)
    keep(connection)
    connection.sendall(wire.header(wire.READ | wire.V2, target.address, 64))
    wire.receive(connection, wire.STATUS.size + 64)


def slow(target: Target, n: int) -> None:
    """Ask for much, and take a little of it now and then."""
    connection = target.dial(target.data, buffer=2048)
    keep(connection, SLOW)
    connection.sendall(wire.header(wire.READ | wire.V2, target.address, LARGE))
    ready, _, _ = select.select(list(held), [], [], 0)
    for some in ready:
        with contextlib.suppress(OSError):
            some.recv(100)


TLS = "TLS that is not finished"
KINDS: dict[str, Act] = {
    "silence": holding(b"", b""),
    "half a request": holding(
        struct.pack("<QB", 1000, wire.METADATA) + b"{", hello.Hello(bytes(16)).encode()[: hello.HEAD.size + 9]
    ),
    TLS: holding(client_hello(), client_hello()),
    "resets": reset,
    "garbage": garbage,
    "handshakes": asking(wire.METADATA, b"{}"),
    "notifications": asking(wire.NOTIFY, b'{"name": "stranger", "notify_msg": "%s"}' % (b"n" * NOTIFICATION)),
    "a byte now and then": drip,
    "idle connections": idle,
    "slow readers": slow,
}
HOLDING = ("silence", "half a request", TLS, "a byte now and then", "idle connections")
ADMITTED = ("idle connections", "slow readers")  # that a secret keeps out from the first byte on


def main() -> None:
    kind, source, host, handshakes, data, address = sys.argv[1:]
    target = Target(source, host, int(handshakes), int(data), int(address))
    threading.Thread(target=end_with_input, daemon=True).start()
    for n in itertools.count():
        with contextlib.suppress(OSError):
            KINDS[kind](target, n)
        time.sleep(PAUSE)


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
