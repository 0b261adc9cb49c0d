"""Hosts as network namespaces, joined by a router that can be told to lose what is on its way. They need root.

The router is the checker's own namespace, which run_apart made for it: nothing here touches the machine's network.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

APART = "KVFERRY_OWNERSHIP_APART"  # is set in the program that runs apart
UNSHARE = ("unshare", "--pid", "--net", "--mount", "--fork", "--mount-proc", "--kill-child")
LIMIT = 10.0  # seconds that a command may take


class LinkError(Exception):
    """There can be no namespaces here; the text says why."""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode != 0:
        raise LinkError(f"{' '.join(command)}: {done.stderr.strip()}")


def why_not_apart() -> str:
    """Why this program cannot have namespaces of its own; "" where it can."""
    try:
        run(*UNSHARE, "ip", "link", "set", "lo", "up")
    except (LinkError, OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    return ""


def run_apart(arguments: Sequence[str]) -> int:
    """Run this program again with namespaces of its own for processes, network and mounts, and return how it ended.

    Ports, process ids and links are nobody else's then, and all processes that it started end with it.
    """
    command = [*UNSHARE, sys.executable, "-m", "ownership", *arguments]
    return subprocess.run(command, env={**os.environ, APART: "1"}).returncode


def is_apart() -> bool:
    return APART in os.environ


def set_up() -> None:
    """Set up the namespace that the program runs apart in."""
    run("ip", "link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


class Host:
    """A network namespace with one interface, behind a router."""

    def __init__(self, number: int) -> None:
        """Its number is 1 to 250, and no other host's."""
        self.address = f"10.88.{number}.2"
        self._router = f"10.88.{number}.1"
        self._link = f"link{number}"
        self._route = f"{self.address}/32"
        self._repair: tuple[str, ...] = ()  # what undoes what was done to the link
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "up\n":
            raise LinkError("there can be no network namespace")
        self.enter = ("nsenter", f"--net=/proc/{self._keeper.pid}/ns/net")
        self._connect()

    def _connect(self) -> None:
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._keeper.pid))
        run("ip", "addr", "add", f"{self._router}/24", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        steps = (
            "ip link set lo up",
            f"ip addr add {self.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {self._router}",
        )
        run(*self.enter, "sh", "-c", " && ".join(steps))

    def cut(self) -> None:
        """Lose everything that it sends or is sent, until heal()."""
        run("ip", "link", "set", self._link, "down")
        self._repair = ("ip", "link", "set", self._link, "up")

    def deafen(self) -> None:
        """Lose everything that other hosts send it, until heal()."""
        run("ip", "route", "add", "blackhole", self._route)
        self._repair = ("ip", "route", "del", "blackhole", self._route)

    @property
    def is_cut(self) -> bool:
        return bool(self._repair)

    def heal(self) -> None:
        repair, self._repair = self._repair, ()
        run(*repair)

    def close(self) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(LIMIT)
        subprocess.run(["ip", "link", "del", self._link], capture_output=True, timeout=LIMIT)


def connections(pid: int, first: int, last: int) -> list[str]:
    """The connections that are up at the end that has one of some ports, in the network namespace of a process."""
    command = ("nsenter", f"--net=/proc/{pid}/ns/net", "ss", "-tnHp", "state", "established")
    ports = f"( sport >= :{first} and sport <= :{last} )"
    return subprocess.run([*command, ports], capture_output=True, text=True, timeout=LIMIT).stdout.splitlines()


def reset_connections(pid: int, first: int, last: int) -> None:
    """Abort the connections to some ports, in the network namespace of a process, as a box between two hosts does."""
    ports = f"( dport >= :{first} and dport <= :{last} ) or ( sport >= :{first} and sport <= :{last} )"
    run("nsenter", f"--net=/proc/{pid}/ns/net", "ss", "-K", "-t", "state", "connected", ports)
