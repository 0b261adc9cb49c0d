"""Two hosts as network namespaces with one link between them. They need root, and touch no other network."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence

CLONE_NEWNET = 0x40000000
LIMIT = 30.0  # seconds that a command may take


class HostsError(Exception):
    """There can be no namespaces here; the text says why."""


def enter(namespace: str) -> None:
    """Move the calling thread, and what it starts from now on, to a network namespace; "" is the one it is in."""
    if not namespace:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    finally:
        os.close(descriptor)


class Host:
    """A network namespace, which lives until it is closed."""

    def __init__(self, number: int) -> None:
        self.address = f"10.89.0.{number}"
        try:
            self._keeper = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "echo up && exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as e:
            raise HostsError(str(e)) from e
        assert self._keeper.stdout is not None and self._keeper.stderr is not None
        if self._keeper.stdout.readline() != "up\n":
            raise HostsError(self._keeper.stderr.read().strip())
        self.pid = self._keeper.pid
        self.namespace = f"/proc/{self.pid}/ns/net"

    def run(self, *command: str) -> None:
        """Run a command on the host."""
        done = subprocess.run(
            ["nsenter", f"--net={self.namespace}", *command], capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode != 0:
            raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}")

    def close(self) -> None:
        self._keeper.communicate(timeout=LIMIT)


def connect(hosts: Sequence[Host]) -> None:
    """Lay the link between two hosts."""
    a, b = hosts
    a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(b.pid))
    for host in hosts:
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "link", "set", "lo", "up")
