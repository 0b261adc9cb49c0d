"""How large packets to a peer may be, where nobody on the way says which are too large.

A machine on the way that drops a packet for its size should say so by ICMP, and the sender's kernel then sends smaller
ones. Where that message is lost, connections come up, since the packets of that are small, and stand as soon as data is
sent. So this sends data, on connections with segments of several sizes, and looks whether the peer's kernel
acknowledges it. It finds the packets from this machine to the peer; of those from the peer it finds nothing out.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Sequence
from typing import NamedTuple

from kvferry._probes.addresses import with_port

PATIENCE = 2.0  # seconds: several times as long as the kernel takes to send a lost packet again
SEGMENTS = 2  # full ones that are sent on a connection
PROBE = 3  # the kind of a handshake frame that asks for nothing
HEADERS = {socket.AF_INET: 40, socket.AF_INET6: 60}  # bytes of IP and TCP before the payload and TCP's options
# Packets of usual networks, from those of Ethernet with jumbo frames down to those that each network takes.
SIZES = (9000, 8900, 1500, 1450, 1400, 1350, 1280, 1000, 576)
MOST = 32767  # bytes: the largest segment that can be asked for


class Packets(NamedTuple):
    """What gets through to a port. Sizes are bytes of whole packets."""

    passes: int | None  # the largest that does; None if none does
    lost: int | None  # the smallest that does not; None if the largest of all gets through


def largest(address: str, port: int, timeout: float) -> Packets | None:
    """Find it out at a handshake port. None where no connection comes up, or the peer ends it before anything is known.
    timeout is that of a connection, in seconds."""
    (usual,) = _passing(address, port, timeout, [0])
    if usual is None or usual.acknowledged:
        return None if usual is None else Packets(usual.packet, None)
    smaller = [size for size in SIZES if size < usual.packet]
    tried = [usual, *(one for one in _passing(address, port, timeout, smaller) if one is not None)]
    passes = max((one.packet for one in tried if one.acknowledged), default=None)
    lost = [one.packet for one in tried if not one.acknowledged and (passes is None or one.packet > passes)]
    return Packets(passes, min(lost))


class _Tried(NamedTuple):
    packet: int
    acknowledged: bool


def _passing(address: str, port: int, timeout: float, sizes: Sequence[int]) -> list[_Tried | None]:
    """Whether packets of these sizes get through, all at the same time; 0 is the size that the interfaces allow."""
    opened = [_opened(address, port, timeout, size) for size in sizes]
    waiting = {s for s in opened if s is not None}
    stands = set(waiting)
    deadline = time.monotonic() + PATIENCE
    while stands and time.monotonic() < deadline:
        stands = {s for s in stands if _unacknowledged(s) and not _was_reset(s)}
        select.select([], [], [], 0.002)
    tried = [None if s is None else _tried(s) for s in opened]
    for s in waiting:
        s.close()
    return tried


def _tried(s: socket.socket) -> _Tried | None:
    """None where the peer has reset the connection: what it had not acknowledged stays so, and is not lost."""
    acknowledged = not _unacknowledged(s)
    return None if not acknowledged and _was_reset(s) else _Tried(_packet(s), acknowledged)


def _opened(address: str, port: int, timeout: float, size: int) -> socket.socket | None:
    """A connection with data under way; None where there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        s = socket.socket(family)
    except OSError:
        return None
    try:
        s.settimeout(timeout)
        if size:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, min(MOST, size - HEADERS[family]))
        s.connect(with_port(address, port))
        s.setblocking(False)
        s.send(_frame(SEGMENTS * _packet(s)))
    except OSError:
        s.close()
        return None
    return s


def _packet(s: socket.socket) -> int:
    """How large the packets of a connection are."""
    segment: int = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return segment + HEADERS[s.family] + _options(s)


def _options(s: socket.socket) -> int:
    """Bytes of TCP's options in each packet, which TCP_MAXSEG leaves out of the segment once a connection is up."""
    timestamps = 1  # TCPI_OPT_TIMESTAMPS of linux/tcp.h
    return 12 if _tcp_info(s)[5] & timestamps else 0


def _was_reset(s: socket.socket) -> bool:
    closed = 7  # TCP_CLOSE of net/tcp_states.h
    return _tcp_info(s)[0] == closed


def _tcp_info(s: socket.socket) -> bytes:
    """The beginning of struct tcp_info of linux/tcp.h."""
    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)


def _unacknowledged(s: socket.socket) -> int:
    """How many bytes were sent and not acknowledged (SIOCOUTQ of linux/sockios.h)."""
    answer = fcntl.ioctl(s, termios.TIOCOUTQ, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])


def _frame(length: int) -> bytes:
    """A request at the handshake port that asks for nothing, with blanks in its JSON."""
    body = b"{" + b" " * length + b"}"
    return struct.pack("<QB", len(body) + 1, PROBE) + body
