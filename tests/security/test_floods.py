"""Honest engines beside strangers that flood the target: no transfer fails, newcomers get in, and all bytes are right.

All of them are in one network namespace, each with an address of its own.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading

import pytest

from support import devices, flood
from support.memory import Memory, transfer
from support.network import FAR, NEAR, STRANGER, Network
from support.peer import Peer
from support.peers import Peers
from support.process import Holdings, until
from support.spans import scattered

SIZE = 4 << 20
SPANS = scattered([1, 100, 4096, 65537, 700_001])
LEAST = 200  # connections that the stranger makes before the transfers, and as many beside them: more than are served
LIMITS = {"KVFERRY_MAX_SESSIONS": "64", "KVFERRY_MAX_HANDSHAKES": "64", "KVFERRY_NOTIFY_BYTES": str(4 << 20)}
PORTS = {"MC_MIN_RPC_PORT": "17001", "MC_MAX_RPC_PORT": "17002"}
SETTLED = 20.0  # seconds within which an engine gives back what strangers have taken
GOES_ON = 60.0  # seconds in which the stranger makes so many connections, on a busy machine


class Flood:
    """A flood that runs, and how many connections the stranger has made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.count = 0
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.count = int(line)

    def wait_for(self, more: int) -> None:
        goal = self.count + more
        until(lambda: self.count >= goal, GOES_ON, f"the stranger makes {more} more connections")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()


class Honest:
    """Two engines that know each other, and what newcomers need to be like the first of them."""

    def __init__(self, peers: Peers, place: str, secret: str) -> None:
        self._peers = peers
        self._place = place
        self._settings = {"KVFERRY_SECRET_FILE": secret} if secret else {}
        self.target = self._start(**LIMITS, **PORTS).create(FAR)
        self.far = self.target.memory(SIZE, 2, place=place)
        self.near = self.newcomer()
        self._rounds = 0
        self.move(self.near)

    def _start(self, **settings: str) -> Peer:
        return self._peers(**self._settings, **devices.needed(self._place), **settings)

    def newcomer(self) -> Memory:
        return self._start().create(NEAR).memory(SIZE, 1)

    def move(self, near: Memory) -> None:
        """Move blocks in both directions, and a notification with each; all must arrive."""
        for opcode in ("write", "read"):
            self._rounds += 1
            text = ("honest", f"round {self._rounds}")
            near.fill(self._rounds)
            transfer(near, self.far, opcode, SPANS, "batch_opcode", text)
            near.check()
            self.far.check()
            assert list(text) in self.target.ask("notifies", engine="main")

    def ports(self) -> tuple[str, str]:
        handshakes = self.target.name.rsplit(":", 1)[1]
        return handshakes, next(port for port in PORTS.values() if port != handshakes)


def check(namespace: Network, honest: Honest, *kinds: str) -> None:
    before = Holdings.of(honest.target.pid).descriptors
    with contextlib.ExitStack() as stack:
        floods = []
        for kind in kinds:
            arguments = (kind, STRANGER, FAR, *honest.ports(), str(honest.far.address))
            floods.append(Flood(stack.enter_context(namespace.running("support.flood", *arguments))))
            stack.callback(floods[-1].end)
        for running in floods:
            running.wait_for(LEAST)
        goals = [running.count + LEAST for running in floods]
        honest.move(honest.near)
        newcomer = honest.newcomer()
        while any(running.count < goal for running, goal in zip(floods, goals)):
            honest.move(honest.near)
            honest.move(newcomer)
        newcomer.peer.kill()
    until(lambda: Holdings.of(honest.target.pid).descriptors <= before, SETTLED, "what strangers took is given back")
    honest.move(honest.near)


@pytest.mark.parametrize("kind", [kind for kind in flood.KINDS if kind != "slow readers"])
def test_honest_transfers_go_on_beside_a_flood_of(namespace: Network, start_in: Peers, secret: str, kind: str) -> None:
    honest = Honest(start_in, "host", secret if kind == flood.TLS else "")  # without a secret TLS is refused at once
    check(namespace, honest, kind)
    if kind in flood.HOLDING:
        assert honest.target.logs("all sessions are in use", "to make room"), "the stranger has come to no limit"


@pytest.mark.devices
def test_honest_transfers_of_device_memory_go_on_beside_slow_readers(namespace: Network, start_in: Peers) -> None:
    check(namespace, Honest(start_in, "npu:0", ""), "slow readers")


def test_engines_with_a_secret_go_on_beside_floods_of_all_kinds_at_once(
    namespace: Network, start_in: Peers, secret: str
) -> None:
    check(namespace, Honest(start_in, "host", secret), *(kind for kind in flood.KINDS if kind not in flood.ADMITTED))


def test_honest_transfers_go_on_beside_floods_of_all_kinds_at_once(namespace: Network, start_in: Peers) -> None:
    check(namespace, Honest(start_in, "host", ""), *(kind for kind in flood.KINDS if kind != "slow readers"))
