"""The owner of the pages. In a round it offers some, has a peer move them, revokes the offer at a random moment, and
looks at once whether all bytes are of this round; then the pages get other bytes, or are offered to another peer.

It runs in a process of its own: `python -m revocation.world` with a Setting as JSON prints a Result as JSON.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from kvferry import Engine, Offer
from support import devices, paths

from .pages import Kind, Pages, stray, word
from .peers import Member, Slowing
from .worker import MOST

PAGES = 80  # of the owner
OPEN = 3  # rounds whose offers live at a time
LIVING, SLOW, STOPPED, UNUSED = "living", "slow", "stopped", "unused"
TRICKLES = {False: "trickle of runs", True: "trickle"}  # by whether it is for one run
ENDS = ("done", "revoked", "cancelled", "cut off")  # of a transfer
LIMIT = 60.0  # seconds that a peer may take for anything


@dataclasses.dataclass
class Setting:
    """A world: how many rounds, by which path, and where the memory is."""

    rounds: int
    seed: int
    path: str
    place: str  # of the owner's memory
    places: list[str]  # of the peers'

    def __str__(self) -> str:
        return f"{self.path}, {self.place}, peers on {' and '.join(self.places)}"

    def variables(self) -> dict[str, str]:
        settings = {paths.VARIABLE: paths.SETTINGS[self.path]}
        needs_devices = any(place != "host" for place in (self.place, *self.places))
        return devices.settings(**settings) if needs_devices else settings


@dataclasses.dataclass
class Result:
    """What a world came to."""

    violation: str = ""
    broken: str = ""  # why it has come to no end
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    times: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # that revoke took, in ms, by kind of peer


@dataclasses.dataclass
class Round:
    number: int
    member: Member
    op: str
    pages: list[int]
    offer: Offer
    trickle: str  # one of TRICKLES; "" for a transfer


class Violation(Exception):
    """A byte was where it may not be."""


class World:
    """The owner and its peers."""

    def __init__(self, setting: Setting, logs: Path) -> None:
        self._setting = setting
        self._random = random.Random(setting.seed)
        self._pages = Pages(PAGES, setting.place)
        self._engine = Engine()
        self._region = self._engine.register(self._pages.array(), access="none")
        self._layout = self._pages.layout("hnd")
        self._free = list(range(PAGES))
        self._allowed = [[word(Kind.EMPTY, 0)] for _ in range(PAGES)]  # of each page: what may be there
        self._pages.fill(self._free, self._allowed[0][0])
        self.counts: collections.Counter[str] = collections.Counter()
        self.times: dict[str, list[float]] = {}
        self._number = 0
        self._time = 0  # rounds, and moments in which no peer was there for one
        self._open: list[Round] = []
        self._members = [Member(i, setting.variables(), logs) for i in range(4)]
        for member in self._members:
            member.peer.ask("prepare", LIMIT, places=setting.places)
        self._slowing = Slowing(self._members[2], setting.seed)
        self._stopping = self._members[3]

    def run(self) -> None:
        self._slowing.start()
        try:
            for _ in range(self._setting.rounds):
                while not (idle := self._idle()):
                    self._advance()
                self._begin(self._random.choice(idle), None)
                while len(self._open) >= OPEN:
                    self._advance()
                if self._random.random() < 0.05:
                    self._revoke_unused()
            while self._open:
                self._advance()
        finally:
            self._slowing.end()
            self._wake(everybody=True)
        for member in self._members:
            while member.ending is not None:
                self._take(member, LIMIT)
        for number in range(PAGES):
            self._judge(number)

    def close(self) -> None:
        for member in self._members:
            member.peer.kill()
        self._engine.close()
        self._pages.free()

    # Peers

    def _idle(self) -> list[Member]:
        self._wake()
        for member in self._members:
            self._take(member, 0)
        busy = [r.member for r in self._open]
        return [m for m in self._members if m.ending is None and not m.is_stopped and m not in busy]

    def _wake(self, everybody: bool = False) -> None:
        for member in self._members:
            if member.is_stopped and (everybody or member.wakes_at <= self._time):
                member.go_on()

    def _take(self, member: Member, seconds: float) -> None:
        """Take the answer of a peer to what it had begun, and wait for it for so long."""
        if member.ending is None:
            return
        if seconds > 0:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                member.ending.future.result(seconds)
        found = member.took()
        if found is None:
            return
        for end in found["ends"]:
            if end not in ENDS:
                raise Violation(f"round {member.round}: a transfer has ended with {end}")
            self.counts[f"transfers {end}"] += 1
        if found["wrong"]:
            raise Violation(f"round {member.round}: a peer has read {found['wrong']}")

    # Rounds

    def _begin(self, member: Member, pages: Optional[list[int]]) -> None:
        """Offer pages to a peer: those that were just taken back, or any."""
        chance, self._number, self._time = self._random, self._number + 1, self._time + 1
        number = self._number
        if pages is None:
            pages = self._draw()
        op = "read" if chance.random() < 0.25 else "write"
        whole = chance.random() < 0.5
        trickle = TRICKLES[whole] if op == "write" and member in self._members[:2] and chance.random() < 0.02 else ""
        for page in pages:
            self._judge(page)
        words = [word(Kind.OFFERED, number)]
        self._pages.fill(pages, words[0])
        if op == "write":
            words.append(word(Kind.PAYLOAD, number))
        for page in pages:
            self._allowed[page] = words
        offer = self._engine.offer(self._layout.blocks(pages), op)
        if trickle:
            member.ending = member.peer.start(
                "trickle", round_=number, offer=offer.json(), whole=whole, path=self._setting.path
            )
        else:
            member.ending = member.peer.start(
                "move",
                round_=number,
                offer=offer.json(),
                opcode=op,
                count=len(pages),
                order=chance.choice(("hnd", "nhd")),
                place=chance.choice(self._setting.places),
                times=chance.choice((1, 1, 2, 5)),
                cancel=chance.expovariate(1000) if chance.random() < 0.3 else None,
            )
        member.round = number
        self._open.append(Round(number, member, op, pages, offer, trickle))

    def _draw(self) -> list[int]:
        count = min(self._random.randint(1, MOST), self._random.randint(1, MOST), len(self._free))
        self._random.shuffle(self._free)
        drawn, self._free = self._free[:count], self._free[count:]
        return drawn

    def _advance(self) -> None:
        """Bring a round to its end, or wait for a peer."""
        if not self._open:
            if not self._idle():
                self._wait()
            return
        now = self._open.pop(self._random.randrange(len(self._open)))
        member = now.member
        self._delay(now)
        if member is self._stopping and self._random.random() < 0.3:
            member.stop(self._time + self._random.randint(1, 30))
        self._revoke(now)
        for page in now.pages:
            self._judge(page)
        self._reuse(now)

    def _wait(self) -> None:
        """Wait a moment for the peers, of which each is busy or stopped."""
        self._time += 1  # those that are stopped are woken in time
        waited_for = next((m for m in self._members if not m.is_stopped and m.ending is not None), None)
        if waited_for is not None:
            self._take(waited_for, 0.01)

    def _delay(self, now: Round) -> None:
        """Let a moment go by: none, some, or until the first bytes are there, as long as they take. Now and then wait
        until the peer has ended: on a slow machine it may have begun in none of these moments."""
        how, until = self._random.random(), time.perf_counter()
        if now.trickle:
            until += 0.02
        elif how < 0.9:
            until += self._random.uniform(0, 0.006)
        elif how < 0.95 and now.member.ending is not None:
            concurrent.futures.wait([now.member.ending.future], LIMIT)
        page = self._random.choice(now.pages)
        while time.perf_counter() < until and not now.member.is_done():
            if how < 0.5 and self._setting.place == "host" and self._pages.read(page)[0] == Kind.PAYLOAD:
                return

    def _revoke(self, now: Round) -> None:
        kind = now.trickle or LIVING
        if now.member.is_stopped:
            kind = STOPPED
        elif now.member.is_slow:
            kind = SLOW
        self.counts[f"rounds {kind}"] += 1
        self._timed(kind, now.offer)

    def _timed(self, kind: str, offer: Offer) -> None:
        began = time.perf_counter()
        offer.revoke()
        self.times.setdefault(kind, []).append(1000 * (time.perf_counter() - began))
        offer.close()

    def _revoke_unused(self) -> None:
        """How long it takes where nobody uses the offer: what is longer than usual is the machine's."""
        self._timed(UNUSED, self._engine.offer(self._layout.blocks([0])))

    def _reuse(self, now: Round) -> None:
        """Give the pages other bytes, and let them rest; or offer them to another peer at once."""
        if any((self._pages.read(page) == Kind.PAYLOAD).any() for page in now.pages[:1]):
            self.counts["rounds with bytes that had come"] += 1
        idle = [m for m in self._idle() if m is not now.member]
        if idle and self._random.random() < 0.4:
            self.counts["pages offered to another peer at once"] += len(now.pages)
            self._begin(self._random.choice(idle), now.pages)
            return
        words = [word(Kind.REUSED, now.number)]
        self._pages.fill(now.pages, words[0])
        for page in now.pages:
            self._allowed[page] = words
        self._free += now.pages

    def _judge(self, page: int) -> None:
        self.counts["pages looked at"] += 1
        wrong = stray(self._pages.read(page), self._allowed[page])
        if wrong:
            allowed = ", ".join(each.hex() for each in self._allowed[page])
            raise Violation(f"by round {self._number}, page {page} has {wrong}; allowed there: {allowed}")


def run(setting: Setting, logs: Path) -> Result:
    world = World(setting, logs)
    violation = ""
    try:
        world.run()
    except Violation as e:
        violation = str(e)
    finally:
        world.close()
    return Result(violation, counts=dict(world.counts), times=world.times)


def main(given: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setting = Setting(**json.loads(given[0]))
    with tempfile.TemporaryDirectory(prefix="kvferry-revocation-") as logs:
        found: dict[str, Any] = dataclasses.asdict(run(setting, Path(logs)))
    json.dump(found, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
