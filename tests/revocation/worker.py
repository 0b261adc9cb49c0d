"""A peer in a process of its own, driven by lines of JSON as support/worker.py is."""

from __future__ import annotations

import os
import sys
from typing import Any, Optional

from kvferry import Cancelled, Engine, Offered, PeerUnreachable, Region, Revoked, Transfer, plan
from support.worker import Server

from .pages import TOKENS, Kind, Pages, stray, word
from .trickle import trickle

MOST = 16  # pages of an offer
LIMIT = 120.0  # seconds that a transfer may take to end


class Worker:
    """The operations. Each public method is one, its parameters the request's arguments."""

    def __init__(self) -> None:
        self._engine = Engine(timeout=LIMIT / 2)
        self._pages: dict[str, Pages] = {}
        self._regions: list[Region] = []

    def prepare(self, places: list[str]) -> None:
        """Make memory at some places."""
        for place in places:
            self._pages[place] = Pages(MOST, place)
            self._regions.append(self._engine.register(self._pages[place].array()))

    def move(
        self,
        round_: int,
        offer: str,
        opcode: str,
        count: int,
        order: str,
        place: str,
        times: int,
        cancel: Optional[float],
    ) -> dict[str, Any]:
        """Move so many pages, in so many transfers at a time, which are cancelled after so many seconds. Say how each
        has ended, and what is wrong with what was read."""
        pages = self._pages[place]
        pages.fill(range(count), word(Kind.PAYLOAD if opcode == "write" else Kind.EMPTY, round_))
        mine, offered = pages.layout(order).blocks(range(count)), Offered(offer)
        peer = self._engine.open(offered)
        tokens = TOKENS * count
        made = plan(mine, offered, tokens) if opcode == "write" else plan(offered, mine, tokens)
        start = peer.write if opcode == "write" else peer.read
        transfers = [start(made) for _ in range(times)]
        if cancel is not None and not transfers[0].wait(cancel):
            for transfer in transfers:
                transfer.cancel()
        ends = [_outcome(transfer) for transfer in transfers]
        return {"ends": ends, "wrong": _strays(pages, count, round_) if opcode == "read" else ""}

    def trickle(self, round_: int, offer: str, whole: bool, path: str) -> dict[str, Any]:
        """Send one WRITE little by little, on a connection of its own."""
        return {"ends": [trickle(offer, whole, path, word(Kind.PAYLOAD, round_))], "wrong": ""}


def _strays(pages: Pages, count: int, round_: int) -> str:
    """What pages hold that were read into, and that was not offered."""
    allowed = word(Kind.EMPTY, round_), word(Kind.OFFERED, round_)
    return next(filter(None, (stray(pages.read(number), allowed) for number in range(count))), "")


def _outcome(transfer: Transfer) -> str:
    error = transfer.exception(LIMIT)
    for kind, name in ((Revoked, "revoked"), (Cancelled, "cancelled"), (PeerUnreachable, "cut off")):
        if isinstance(error, kind):
            return name
    return "done" if error is None else f"{type(error).__name__}: {error}"


def main() -> None:
    # Native libraries print where they like: answers get a descriptor of their own, standard output joins the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Server(Worker(), answers).serve(sys.stdin)


if __name__ == "__main__":
    main()
