"""One of our engines with a healthy peer, so that what goes wrong elsewhere can be seen to harm neither."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from . import wire
from .memory import addresses, apply
from .peers import Peers
from .process import LeakCheck, until
from .spans import scattered

QUICK = {
    "MC_TRANSFER_TIMEOUT": "5",
    "MC_TCP_STATUS_TIMEOUT_SEC": "2",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "2",
    "MC_HANDSHAKE_CONNECT_TIMEOUT": "1",
    "MC_RETRY_CNT": "2",
}
"""Settings with which whatever fails does so soon."""

PATIENT = {
    **QUICK,
    "MC_TRANSFER_TIMEOUT": "30",
    "MC_TCP_STATUS_TIMEOUT_SEC": "30",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "30",
}
"""Settings with which nothing ends a transfer but what a test does."""

GIVEN_UP = 30.0  # seconds within which a sync call ends with QUICK: its own 5, and time for a busy machine
HUNG = 40.0  # seconds after which a peer that did not end a call is killed
HELD_UP = 2.0  # seconds that a transfer to a healthy peer may take; less than any of the times in QUICK
SIZE = 1 << 20
MORE = 4  # transfers that show that the engine goes on
STAGING_POOL = 256 << 20  # bytes of staging blocks that an engine may have for one device


class World:
    """`near` is memory of the engine that is tested, `far` that of a healthy peer. Both are compared as a whole.

    `near` is at `place`, of which regions.py tells; `settings` are the engine's.
    """

    def __init__(self, peers: Peers, kind: str = "ours", place: str = "host", **settings: str) -> None:
        self.place = place
        self.engine = peers("ours", **{**QUICK, **settings}).create()
        self.healthy = peers(kind).create()
        self.near = self.engine.memory(SIZE, 1, place=place)
        self.far = self.healthy.memory(SIZE, 2)
        self.scratch = self.engine.memory(SIZE, 3, place=place)  # for transfers that fail
        self._warm_up()

    def _warm_up(self) -> None:
        """Let both ends get what they keep from then on."""
        with self.unharmed():
            pass

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[Traffic]:
        """Transfer between the engine and its healthy peer, both ways, as long as the body runs.

        Each must succeed, none may be held up, and in the end every byte must be where it belongs.
        """
        traffic = Traffic(self)
        try:
            yield traffic
        finally:
            traffic.stop()
        traffic.check()
        self.near.check()
        self.far.check()

    @property
    def over(self) -> bool:
        """Tell whether one of the two was killed, as happens to who does not answer in time."""
        return self.engine.ended or self.healthy.ended

    def leaks(self) -> LeakCheck:
        """Remember what the engine holds now, but for its lanes to the healthy peer: it may open more of them.

        An engine with memory of a device may also make more staging blocks, which it keeps. The simulator reports what
        is leaked on the device.
        """
        kept = 0 if self.place == "host" else STAGING_POOL
        return LeakCheck(self.engine, apart_from=wire.data_address(self.healthy.name)[1], kept=kept)


@contextlib.contextmanager
def still_well(world: World) -> Iterator[None]:
    """Check that the engine serves others while the body runs and after it, holds no more, and lost no byte."""
    assert wire.descriptor(world.engine.name)
    leaks = world.leaks()
    with world.unharmed():
        yield
        assert wire.descriptor(world.engine.name)["name"] == world.engine.name
    leaks.check()


class Traffic:
    """Transfers one after the other on a thread of its own. They move what both sides hold already in the end."""

    SPANS = scattered([1, 4096, 16384, 65537])

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = threading.Event()
        self._codes: list[int] = []
        self._seconds: list[float] = []
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for_more(self) -> None:
        """Wait until some more transfers have ended."""
        before = len(self._codes)
        until(lambda: len(self._codes) >= before + MORE, GIVEN_UP, "transfers to a healthy peer go on")

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        assert not self._failure, f"the transfers to a healthy peer ended: {self._failure[0]}"
        assert self._codes and set(self._codes) == {0}, f"transfers to a healthy peer gave {set(self._codes)}"
        assert max(self._seconds) < HELD_UP, f"a transfer to a healthy peer took {max(self._seconds):.1f} s"

    def _run(self) -> None:
        try:
            while not self._codes or not self._over.wait(0.01):
                self._move("write")
                self._move("read")
        except BaseException as error:
            self._failure.append(error)

    def _move(self, opcode: str) -> None:
        world = self._world
        result = world.engine.move(
            world.healthy.name, opcode, addresses(world.near, world.far, self.SPANS), limit=GIVEN_UP
        )
        self._codes.append(result["code"])
        self._seconds.append(result["seconds"])
        if result["code"] == 0:
            apply(opcode, world.near, world.far, self.SPANS)
