"""A network namespace of its own whose loopback interface has the addresses of several hosts. It needs root."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

from .peer import TESTS
from .peers import unavailable

NEAR, FAR, STRANGER, OTHER_STRANGER = "10.90.0.1", "10.90.0.2", "10.90.9.1", "10.90.9.2"
SET_UP = "ip link set lo up && " + " && ".join(
    f"ip addr add {address}/32 dev lo" for address in (NEAR, FAR, STRANGER, OTHER_STRANGER)
)
LIMIT = 30.0  # seconds that a program may take to end after its standard input did


class Network:
    """The namespace, as long as the process `keeper` runs.

    `enter` is a command that runs another one in it, in place of itself.
    """

    def __init__(self, keeper: int) -> None:
        self.keeper = keeper
        self.enter = ("nsenter", f"--net=/proc/{keeper}/ns/net")

    @contextlib.contextmanager
    def running(self, module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a module of the tests in the namespace until the end of the block, when its standard input ends."""
        command = [*self.enter, sys.executable, "-m", module, *arguments]
        with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                assert process.stdin is not None
                process.stdin.close()
                try:
                    process.wait(LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextlib.contextmanager
def made() -> Iterator[Network]:
    """The namespace, for the time of the block. Where there can be none the test is skipped."""
    command: Sequence[str] = ("unshare", "--net", "sh", "-c", f"{SET_UP} && echo up && exec cat")
    try:
        keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as e:
        unavailable(f"this needs util-linux and iproute2: {e}")
    with keeper:
        assert keeper.stdin and keeper.stdout and keeper.stderr
        if keeper.stdout.readline() != "up\n":
            unavailable(f"this needs network namespaces, which root can make: {keeper.stderr.read().strip()}")
        try:
            yield Network(keeper.pid)
        finally:
            keeper.stdin.close()
