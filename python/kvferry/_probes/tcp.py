"""The kernel's settings of TCP."""

from __future__ import annotations

from typing import NamedTuple

from kvferry._probes import read_number, read_text

FOLDER = "/proc/sys/net/ipv4/"


class Tcp(NamedTuple):
    """Settings of net.ipv4.tcp_*; None where the kernel does not have one."""

    congestion: str | None  # control of new connections
    allowed_congestion: tuple[str, ...]  # that an unprivileged process may choose
    receive_buffer: int | None  # bytes: how far the kernel lets it grow, which bounds the window
    send_buffer: int | None
    window_scaling: bool | None
    selective_acks: bool | None
    mtu_probing: int | None


def tcp() -> Tcp:
    """The settings of this network namespace."""
    return Tcp(
        congestion=read_text(FOLDER + "tcp_congestion_control"),
        allowed_congestion=tuple((read_text(FOLDER + "tcp_allowed_congestion_control") or "").split()),
        receive_buffer=_largest("tcp_rmem"),
        send_buffer=_largest("tcp_wmem"),
        window_scaling=_flag("tcp_window_scaling"),
        selective_acks=_flag("tcp_sack"),
        mtu_probing=read_number(FOLDER + "tcp_mtu_probing"),
    )


def _largest(name: str) -> int | None:
    values = (read_text(FOLDER + name) or "").split()
    return int(values[2]) if len(values) == 3 else None


def _flag(name: str) -> bool | None:
    value = read_number(FOLDER + name)
    return None if value is None else value != 0
