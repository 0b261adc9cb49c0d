"""Addresses and interfaces of this machine."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvferry._probes import read_number, read_text

INTERFACES = Path("/sys/class/net")
TUNNEL = "/sys/devices/virtual/"


class Interface(NamedTuple):
    """A network interface."""

    name: str
    up: bool
    mtu: int | None
    speed: int | None  # bits per second; None where the hardware does not tell, and for one without hardware
    virtual: bool  # there is no hardware behind it, as in most containers
    numa_node: int | None
    driver: str | None
    queues: int  # for received packets


class Address(NamedTuple):
    """An address of an interface that is up."""

    interface: str
    text: str

    @property
    def reachable(self) -> bool:
        """Whether other machines may be able to reach it."""
        parsed = ipaddress.ip_address(self.text.partition("%")[0])
        return not (parsed.is_loopback or parsed.is_link_local)


def interface(name: str) -> Interface:
    """Describe an interface."""
    folder = INTERFACES / name
    virtual = str(folder.resolve()).startswith(TUNNEL)
    speed = None if virtual else read_number(folder / "speed")  # of a virtual one it is made up
    driver = folder / "device" / "driver"
    node = read_number(folder / "device" / "numa_node")
    return Interface(
        name=name,
        up=read_text(folder / "operstate") in ("up", "unknown"),
        mtu=read_number(folder / "mtu"),
        speed=speed * 1_000_000 if speed is not None and speed > 0 else None,
        virtual=virtual,
        numa_node=node if node is not None and node >= 0 else None,
        driver=driver.resolve().name if driver.exists() else None,
        queues=len(list((folder / "queues").glob("rx-*"))),
    )


class _Sockaddr(ctypes.Structure):
    _fields_ = [("family", ctypes.c_uint16), ("data", ctypes.c_uint8 * 26)]


class _Ifaddrs(ctypes.Structure):
    """struct ifaddrs of getifaddrs(3)."""


_Ifaddrs._fields_ = [
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_Sockaddr)),
    ("netmask", ctypes.c_void_p),
    ("destination", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]
_UP = 0x1  # IFF_UP


def addresses() -> list[Address]:
    """The addresses of the interfaces that are up."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        return []
    try:
        return list(_addresses(first))
    finally:
        libc.freeifaddrs(first)


def _addresses(entry: ctypes._Pointer[_Ifaddrs]) -> Iterator[Address]:
    while entry:
        one = entry.contents
        if one.address and one.flags & _UP:
            data = bytes(one.address.contents.data)
            name = one.name.decode(errors="replace")
            if one.address.contents.family == socket.AF_INET:
                yield Address(name, socket.inet_ntop(socket.AF_INET, data[2:6]))
            elif one.address.contents.family == socket.AF_INET6:
                yield Address(name, socket.inet_ntop(socket.AF_INET6, data[6:22]))
        entry = one.next


def source_address(destination: str) -> str | None:
    """The address of this machine from which packets go to an address; None where there is no route to it."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect(with_port(destination, 9))  # it sends nothing
            return text_of(s.getsockname())
    except OSError:
        return None


def with_port(address: str, port: int) -> Any:
    """An address and a port as sockets take them. A link-local address has its interface: fe80::1%eth0."""
    return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]


def text_of(found: Any) -> str:
    """The address in what a socket returns: a link-local one with its interface."""
    return socket.getnameinfo(found, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


def interface_of(address: str) -> str | None:
    """The name of the interface that has an address of this machine."""
    return next((one.interface for one in addresses() if one.text == address.partition("%")[0]), None)
