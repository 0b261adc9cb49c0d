"""Free ports of a range."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

from kvferry._probes import read_text

ENOUGH = 8  # free ports that are looked for: an engine takes two


class Ports(NamedTuple):
    """Ports from which engines pick theirs."""

    first: int
    last: int
    free: int  # as many as were found, ENOUGH at most
    ephemeral: tuple[int, int] | None  # the range from which the kernel picks ports of connections that go out


def ports(first: int, last: int) -> Ports:
    """Look for free ports in a range, both ends included."""
    free = 0
    for port in range(first, last + 1):
        free += is_free(port)
        if free == ENOUGH:
            break
    bounds = (read_text("/proc/sys/net/ipv4/ip_local_port_range") or "").split()
    return Ports(first, last, free, (int(bounds[0]), int(bounds[1])) if len(bounds) == 2 else None)


def is_free(port: int) -> bool:
    """Whether a program could listen on a port of all addresses."""
    for family, address in _wildcards():
        with socket.socket(family) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                s.bind((address, port))
                s.listen(1)
            except OSError:
                return False
    return True


def _wildcards() -> Iterator[tuple[socket.AddressFamily, str]]:
    yield socket.AF_INET, "0.0.0.0"
    if read_text("/proc/net/if_inet6"):  # the machine has IPv6
        yield socket.AF_INET6, "::"
