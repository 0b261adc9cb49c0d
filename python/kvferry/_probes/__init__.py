"""What can be found out about this machine and the way to a peer, one fact by one function.

A probe returns a typed result, prints nothing, and judges nothing: the doctor does (kvferry/_command/doctor*.py). What
the system does not say is None. A probe raises no error for what it finds, and leaves nothing behind.

    addresses.py    addresses and interfaces of this machine, and which of them leads to a peer
    clocks.py       the machine's clock
    connecting.py   names, and TCP connections to a port
    devices.py      NPUs and GPUs, and how fast they copy
    limits.py       descriptors, locked memory, processes
    ports.py        free ports of a range
    processors.py   processors, and how busy they are
    samehost.py     whether processes may read each other's memory
    software.py     kernel, C library, kvferry, Mooncake beside it
    tcp.py          the kernel's settings of TCP
"""

from __future__ import annotations

from pathlib import Path


def read_text(path: str | Path) -> str | None:
    """The text of a file of the kernel's, without the last line's end; None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_number(path: str | Path) -> int | None:
    """The number in such a file; None where there is none."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
