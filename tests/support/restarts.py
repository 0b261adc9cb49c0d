"""Peers that come back under the name they had, or in the place of another."""

from __future__ import annotations

from typing import Callable

from . import wire
from .memory import Memory
from .peer import Peer
from .peers import Peers
from .ports import hold

TRIES = 40  # engines that a peer may make until one picks the port it had
PLACE = 0x6000_0000_0000  # where memory is in every process, as that of devices may be


def restart(peers: Peers, name: str, settings: dict[str, str]) -> Peer:
    """Start a peer that has the name: there are only two ports, either of which may become which."""
    return start_until(peers, lambda peer: peer.name == name, settings)


def start_until(peers: Peers, fits: Callable[[Peer], bool], settings: dict[str, str]) -> Peer:
    """Start a peer with these settings, and have it make engines until one is as wanted."""
    peer = peers(**settings)
    for _ in range(TRIES):
        if fits(peer.create()):
            return peer
        peer.ask("drop", engine="main")
    raise AssertionError(f"of {TRIES} engines with {settings} none was as wanted")


def placed(peer: Peer, size: int) -> Memory:
    """Make memory at PLACE, and register it."""
    return peer.memory(size, place=f"at:{PLACE:#x}")


def take_data_port(peers: Peers, former: str, port: int, settings: dict[str, str]) -> Peer:
    """Start a peer whose data port is that of one that has ended, whose name was `former`. Its own name is another."""
    other = next(p for p in (port + 1, port - 1) if p != wire.split_name(former)[1] and is_free(p))
    ports = {"MC_MIN_RPC_PORT": str(min(port, other)), "MC_MAX_RPC_PORT": str(max(port, other))}
    return start_until(peers, lambda peer: wire.data_address(peer.name)[1] == port, {**settings, **ports})


def is_free(port: int) -> bool:
    try:
        hold(port).close()
    except OSError:
        return False
    return True
