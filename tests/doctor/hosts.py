"""Two hosts with a link between them: one runs `kvferry serve`, the other `kvferry doctor`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import link
from support.inprocess import environment
from support.peers import unavailable

LIMIT = 90.0  # seconds that a command may take
HERE, THERE = link.ADDRESSES
PORTS = {"MC_MIN_RPC_PORT": "16001", "MC_MAX_RPC_PORT": "16002"}
EXPECTED = "80M"  # bits per second: what every machine reaches, however busy it is


class Report(NamedTuple):
    """What the doctor said."""

    status: int
    findings: list[dict[str, str]]
    measured: dict[str, Any]

    def of(self, *severities: str) -> set[str]:
        """The subjects of the findings of some severities."""
        return {finding["subject"] for finding in self.findings if finding["severity"] in severities}

    def wrong(self) -> set[str]:
        """The subjects of what is wrong."""
        return self.of("error", "warning")


class Hosts:
    """The two hosts."""

    def __init__(self, joined: link.Joined) -> None:
        self.link = joined

    def on(self, keeper: int, command: Sequence[str]) -> list[str]:
        """A command, on the host that the process keeps."""
        return ["nsenter", f"--net=/proc/{keeper}/ns/net", f"--mount=/proc/{keeper}/ns/mnt", *command]

    def set(self, keeper: int, name: str, value: str) -> None:
        """Change a setting of the kernel of a host."""
        script = f"echo '{value}' > /proc/sys/{name.replace('.', '/')}"
        subprocess.run(self.on(keeper, ["sh", "-c", script]), check=True, timeout=LIMIT)

    def set_mtu(self, keeper: int, size: int) -> None:
        """Have a host send packets of so many bytes at most."""
        command = ["ip", "link", "set", link.INTERFACE, "mtu", str(size)]
        subprocess.run(self.on(keeper, command), check=True, timeout=LIMIT)

    def limit_windows(self, keeper: int, size: int) -> None:
        """Bound the receive buffers of a host, in packets as networks have them."""
        self.set(keeper, "net.ipv4.tcp_rmem", f"4096 {size} {size}")
        self.set_mtu(keeper, 1500)

    @contextlib.contextmanager
    def serving(self, *options: str, **settings: str) -> Iterator[str]:
        """`kvferry serve` on the other host: the name of its engine."""
        command = [sys.executable, "-m", "kvferry", "serve", "--size", "32M", "--json", *options]
        if "--name" not in options:
            command += ["--name", THERE]
        with subprocess.Popen(
            self.on(self.link.there, command),
            env=environment(KVFERRY_SAME_HOST="0", **PORTS, **settings),
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                yield str(json.loads(_object(process.stdout))["name"])
            finally:
                process.terminate()

    def doctor(self, *arguments: str, before: Sequence[str] = (), **settings: str) -> Report:
        """Run the doctor on this host. before is a command that runs another one in its place."""
        command = [*before, sys.executable, "-m", "kvferry", "doctor", "--json", *arguments]
        done = subprocess.run(
            self.on(self.link.here, command),
            env=environment(KVFERRY_SAME_HOST="0", **settings),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        try:
            found = json.loads(done.stdout)
            return Report(done.returncode, found["findings"], found["measured"])
        except (ValueError, KeyError) as e:
            raise AssertionError(f"the doctor printed {done.stdout!r} {done.stderr!r}") from e


def _object(stream: Any) -> str:
    """The lines of a JSON object."""
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith("}"):
            break
    return "".join(lines)


@contextlib.contextmanager
def joined(program: Path, microseconds: int = 0, megabits: int = 0, lose_one_in: int = 0) -> Iterator[Hosts]:
    """The hosts, with a link of that kind. Where there can be none the test is skipped."""
    with contextlib.ExitStack() as stack:
        try:
            hosts = Hosts(stack.enter_context(link.joined(program, microseconds, megabits, lose_one_in)))
        except (link.LinkError, OSError) as e:
            unavailable(f"this needs network namespaces and TUN devices, which root can make: {e}")
        yield hosts
