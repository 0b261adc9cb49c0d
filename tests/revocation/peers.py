"""The peers of a world, as the owner sees them."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from support import venvs
from support.peer import Peer, Pending, environment

STOPPED, RUNNING = (0.0005, 0.008), (0.0005, 0.004)  # seconds for which a slow peer does not run, and does


class Member:
    """A peer. It moves pages by one offer at a time."""

    def __init__(self, number: int, settings: Mapping[str, str], logs: Path) -> None:
        env = environment({**venvs.ours(), **settings}, ours=True)
        self.peer = Peer(f"peer {number}", sys.executable, env, logs / f"peer {number}.log", "revocation.worker")
        self.ending: Optional[Pending] = None  # of what it has begun
        self.round = 0
        self.wakes_at = 0  # when it runs again, where it is stopped
        self.is_slow = False

    @property
    def is_stopped(self) -> bool:
        return self.wakes_at > 0

    def stop(self, wakes_at: int) -> None:
        self.peer.process.send_signal(signal.SIGSTOP)
        self.wakes_at = wakes_at

    def go_on(self) -> None:
        self.wakes_at = 0
        self.peer.process.send_signal(signal.SIGCONT)

    def is_done(self) -> bool:
        """Whether what it had begun has ended."""
        return self.ending is None or self.ending.done()

    def took(self) -> Optional[dict[str, Any]]:
        """How what it had begun has ended; None while it has not."""
        if self.ending is None or not self.ending.done():
            return None
        ending, self.ending = self.ending, None
        found: dict[str, Any] = ending.result()
        return found


class Slowing(threading.Thread):
    """Has a peer run for a moment now and then."""

    def __init__(self, member: Member, seed: int) -> None:
        super().__init__(daemon=True)
        self._process = member.peer.process
        self._random = random.Random(seed)
        self._over = threading.Event()
        member.is_slow = True

    def run(self) -> None:
        while not self._over.wait(self._random.uniform(*RUNNING)):
            self._process.send_signal(signal.SIGSTOP)
            self._over.wait(self._random.uniform(*STOPPED))
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._over.set()
        self.join()
