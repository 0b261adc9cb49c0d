"""Names, and TCP connections to a port."""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import NamedTuple

from kvferry._probes.addresses import text_of, with_port

IP_MTU, IPV6_MTU = 14, 24  # of linux/in.h and linux/in6.h
_RTT_AT, _MSS_AT = 68, 16  # offsets in struct tcp_info of linux/tcp.h


class Resolved(NamedTuple):
    """What a name leads to."""

    addresses: tuple[str, ...]
    seconds: float
    problem: str  # why there are none


class Connected(NamedTuple):
    """An attempt to connect."""

    address: str
    port: int
    problem: str  # "" where it came up
    refused: bool  # the machine is there, and nobody listens
    silent: bool  # there was no answer within the time
    exhausted: bool  # this process has no descriptor for the connection
    round_trip: float | None  # seconds, of the handshake of TCP
    path_mtu: int | None  # bytes, as the kernel knows it now
    segment: int | None  # bytes: payload of a segment, as both sides' interfaces allow


def resolve(host: str) -> Resolved:
    """The addresses of a host, which may be an address itself."""
    start = time.monotonic()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        return Resolved((), time.monotonic() - start, str(e))
    return Resolved(tuple(dict.fromkeys(text_of(address) for *_, address in found)), time.monotonic() - start, "")


def connect(address: str, port: int, timeout: float) -> Connected:
    """Connect to a port, and close the connection again. timeout is in seconds."""
    found = Connected(address, port, "", False, False, False, None, None, None)
    v6 = ":" in address
    try:
        with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET) as s:
            s.settimeout(timeout)
            s.connect(with_port(address, port))
            info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            (segment,), (round_trip,) = struct.unpack_from("I", info, _MSS_AT), struct.unpack_from("I", info, _RTT_AT)
            level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if v6 else (socket.IPPROTO_IP, IP_MTU)
            mtu = s.getsockopt(level, option)
            return found._replace(round_trip=round_trip / 1e6, path_mtu=mtu, segment=segment)
    except socket.timeout:
        return found._replace(problem=f"no answer within {timeout:g} s", silent=True)
    except OSError as e:
        return found._replace(
            problem=e.strerror or str(e),
            refused=e.errno == errno.ECONNREFUSED,
            silent=e.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH),
            exhausted=e.errno in (errno.EMFILE, errno.ENFILE),
        )
