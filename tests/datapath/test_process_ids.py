"""A target copies from the process that it has met, and never from another one that has got its process id."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import venvs, wire
from support.hello import write_by_address
from support.memory import Memory
from support.peer import EXIT_LIMIT, TESTS, Peer, environment
from support.peers import Peers, unavailable
from support.process import until
from support.restarts import PLACE
from support.world import QUICK

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
STARTS = 50  # how often a process may be started until it gets the id
ORPHANS = 10  # of which another process has got the id, and keeps it
SIZES = (4096, 64 << 20)  # bytes: the second takes the target some time to copy
PEEK = 64  # bytes


class Orphan:
    """A process of support.orphan, which has ended by now: its child has the connection. `id` is the one it had."""

    def __init__(self, name: str, when: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.orphan", name, when],
            cwd=TESTS,
            env=environment(venvs.ours(), ours=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.id = self.process.pid
        assert self.process.wait(EXIT_LIMIT) == 0
        if when == "before":
            self.answer = self._line()

    def go_on(self, when: str) -> None:
        """Let the child go on: somebody else has the id now."""
        self._say("")
        if when == "after":
            self.answer = self._line()

    def send(self, request: bytes) -> str:
        """Have the child send a request, and return the code of its status: "None" where none comes."""
        self._say(request.hex())
        return self._line()

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def watched(target: Peer, memory: Memory) -> Iterator[list[bytes]]:
    """Read the first bytes of a memory again and again, and list what was seen there."""
    seen: list[bytes] = []
    over = threading.Event()

    def watch() -> None:
        with wire.connect(wire.data_address(target.name)) as connection:
            while not over.is_set():
                connection.sendall(wire.header(wire.READ | wire.V2, memory.address, PEEK))
                assert wire.read_status(connection) == wire.OK
                found = wire.receive(connection, PEEK)
                if not seen or seen[-1] != found:
                    seen.append(found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        until(lambda: bool(seen), wire.LIMIT, "the first look")
        yield seen
    finally:
        over.set()
        thread.join()


def orphan_and_successor(peers: Peers, name: str, when: str) -> tuple[Orphan, Peer]:
    """A process that has ended, and a peer that has got its id. If another process gets the id first and keeps it, both
    are started again."""
    for _ in range(ORPHANS):
        orphan = Orphan(name, when)
        if peer := start_with_id(peers, orphan.id):
            return orphan, peer
        orphan.close()
    raise AssertionError(f"no process got the id of one of {ORPHANS} others")


def start_with_id(peers: Peers, number: int) -> Peer | None:
    """Start a peer whose process has an id, unless another process or thread has it."""
    for _ in range(STARTS):
        if Path(f"/proc/{number}").exists():
            return None
        try:
            LAST_PID.write_text(str(number - 1))
        except OSError as reason:
            unavailable(f"{LAST_PID} cannot be set ({reason}): run the tests as root")
        peer = peers()
        if peer.pid == number:
            return peer
        peer.kill()
    return None


@pytest.mark.parametrize("when", ("before", "after", "never"))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beyond", (0, 4096), ids=("mapped", "mapped-in-part"))
def test_a_target_does_not_copy_from_a_process_that_has_the_id_of_a_dead_peer(
    start_peer: Peers, when: str, size: int, beyond: int
) -> None:
    target = start_peer(**QUICK).create()
    memory = target.memory(size + beyond, 1)
    orphan, victim = orphan_and_successor(start_peer, target.name, when)
    secret = victim.memory(size, 2, register=False, place=f"at:{PLACE:#x}")
    with contextlib.closing(orphan), watched(target, memory) as seen:
        orphan.go_on(when)
        code = orphan.send(write_by_address(memory.address, size + beyond, secret.address))
    assert code != str(wire.OK)
    assert bytes(secret.model[:PEEK]) not in seen, "the secret of another process could be read for a while"
    memory.check()
