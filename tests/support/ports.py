"""Ports that are free, to fix where a peer listens."""

from __future__ import annotations

import contextlib
import random
import socket

LOWEST, HIGHEST = 17001, 32000  # legal for an engine, and outside of what engines pick by themselves


def hold(port: int) -> socket.socket:
    """Listen on a port of all addresses, so that no one else can."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.bind(("::", port))
        s.listen(1)
    except OSError:
        s.close()
        raise
    return s


def hold_range(count: int) -> list[socket.socket]:
    """Listen on so many free ports in a row."""
    while True:
        first = random.randrange(LOWEST, HIGHEST - count)
        with contextlib.ExitStack() as stack:
            try:
                held = [stack.enter_context(hold(first + i)) for i in range(count)]
            except OSError:
                continue
            stack.pop_all()
            return held


def port_of(s: socket.socket) -> int:
    return int(s.getsockname()[1])


def free_range(count: int) -> dict[str, str]:
    """Return the settings that confine an engine to so many free ports in a row."""
    held = hold_range(count)
    settings = confined_to(held)
    for s in held:
        s.close()
    return settings


def free_ports(count: int) -> list[int]:
    """Return so many ports that nobody has, and that no connection and no other engine is given meanwhile."""
    held = hold_range(count)
    found = [port_of(s) for s in held]
    for s in held:
        s.close()
    return found


def confined_to(held: list[socket.socket]) -> dict[str, str]:
    return {"MC_MIN_RPC_PORT": str(port_of(held[0])), "MC_MAX_RPC_PORT": str(port_of(held[-1]))}
