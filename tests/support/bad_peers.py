"""Transfers to peers that do not behave: what must come of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from .rawpeer import BASE
from .world import GIVEN_UP, HUNG, World

LENGTH = 300_001  # bytes of a transfer that fails
AT_ONCE = 4  # such transfers at the same time
NAMED_WITHIN = 5.0  # seconds in which one of them must have left a message


def fail_in_time(world: World, name: str, opcode: str, at_once: int = AT_ONCE) -> None:
    """Try transfers to a bad peer, several at once; each must fail, in time."""
    block = [[world.scratch.address, BASE, LENGTH]]
    pending = [world.engine.start_move(name, opcode, block) for _ in range(at_once)]
    for result in [p.result(HUNG) for p in pending]:
        assert result["code"] < 0
        assert result["seconds"] < GIVEN_UP


@contextlib.contextmanager
def nothing_left(world: World) -> Iterator[None]:
    """Check that the engine holds no more once the body has ended."""
    leaks = world.leaks()
    yield
    leaks.check()


def check_bad_peer(world: World, name: str, opcode: str, named: tuple[str, ...]) -> None:
    """Try a bad peer, and look for a message that names it, while others are served."""

    def is_named() -> bool:
        return any(n in world.engine.log() for n in named)

    with world.unharmed():
        fail_in_time(world, name, opcode)
        deadline = time.monotonic() + NAMED_WITHIN
        while not is_named():  # the log holds back lines that are too many for one second
            assert time.monotonic() < deadline, f"no message names {' or '.join(named)}: {world.engine.log()}"
            fail_in_time(world, name, opcode, at_once=1)
