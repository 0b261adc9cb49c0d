"""Operations, and which words a place of offered memory may hold at each moment.

A moment is a number that grows whenever the checker sends a request or receives an answer. An operation begins before
its request is sent and ends after its answer was received, so what the model takes for one after the other was so.

A place may hold

- what the owner filled it with, until a WRITE that began later was acknowledged;
- the payload of a WRITE to that place, from its begin on, if the WRITE may reach this incarnation of the engine, and if
  no WRITE of the same initiator that began after its end was acknowledged for the place. A WRITE that failed may have
  written all of its places, none, or some.

A WRITE may reach the incarnation whose name it was called with, but none that was begun after the initiator's engine
had the whole of the call. A call may be made long after it was asked for, if the initiator was stopped; so these are
times of a clock, and that of a call is taken in its process. It is known of calls that submit first, and then wait.
Mooncake promises less: see Incarnation.

What a READ returns with success must be what its places might hold at some moment from its begin to its end, and the
memory must have been offered in that time.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from . import arena, words
from .words import Kind, Mask, Words

Moments = np.ndarray[Any, np.dtype[np.int64]]

PLACES = arena.SIZE // words.WORD  # of an area
KEPT = 512  # operations that a region keeps before it looks for some that are over
TORN = 64  # words that may be torn at a time: one at the edge of each copy that is under way, or was cut off
FOREVER = 1 << 62


class Promise(enum.Enum):
    """What a violation is a violation of."""

    RETURNED = "1: after a call has reported, nothing touches the caller's memory"
    ACKNOWLEDGED = "2: what was acknowledged stays"
    INCARNATION = "3: nothing meant for one incarnation of an engine reaches another"
    READ = "4: a READ gives what the memory held, and its destination is the caller's after the call"
    WITHDRAWN = "5: what was taken back is neither read nor written"
    BOUNDED = "6: no call takes longer than its limit"
    ALIVE = "7: no engine ends by itself, and another one can be made at once"
    PLACE = "0: bytes arrive whole, and where they belong"


@dataclasses.dataclass(frozen=True)
class Span:
    """Places in a row."""

    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count

    def meets(self, other: Span) -> bool:
        return self.first < other.end and other.first < self.end


WHOLE = Span(0, PLACES)


@dataclasses.dataclass(eq=False)
class Incarnation:
    """One life of an engine.

    Mooncake knows no incarnations: a WRITE may reach any Mooncake target of its name. Mooncake takes no memory back, so
    that is not looked at. It may go on with a WRITE that it gave up, at any time, with whatever its buffer holds then.
    And it goes on using the data port of an engine that is gone, which may be another's by then: its words may be
    anywhere, and so may be what its READs return.
    """

    number: int
    slot: int
    ours: bool
    name: str = ""
    made: float = 0.0  # seconds; it was not there before
    ended: Optional[int] = None  # when its end began
    over: Optional[int] = None  # when it had come to its end
    regions: list[Region] = dataclasses.field(default_factory=list)
    addresses: Sequence[int] = ()  # of the regions

    def __str__(self) -> str:
        kind = "kvferry" if self.ours else "Mooncake"
        return f"incarnation {self.number} ({kind} in slot {self.slot}, {self.name or 'no name yet'})"


@dataclasses.dataclass(eq=False)
class Operation:
    """A READ or WRITE between a buffer of its initiator and a region of whichever engine has the name.

    `spans` are places of the region; in the buffer they are one after the other.
    """

    number: int
    opcode: str
    initiator: Incarnation
    name: str
    meant: Incarnation
    region: int
    spans: Sequence[Span]
    way: str
    limit: float
    buffer: int
    begun: int = 0
    submitted: Callable[[], float] = float  # seconds; by when the engine had the whole of its call, 0 for not known
    ended: Optional[int] = None
    code: Optional[int] = None
    remark: str = ""

    @property
    def writes(self) -> bool:
        return self.opcode == "write"

    @property
    def acknowledged(self) -> bool:
        return self.code == 0

    @property
    def count(self) -> int:
        return sum(span.count for span in self.spans)

    def head(self, kind: Kind) -> int:
        return words.head(kind, self.initiator.slot, self.meant.number, self.number)

    def words(self, kind: Kind) -> Words:
        """The words of that kind for the buffer, each with the place that it is sent to."""
        head = self.head(kind)
        made: Words = np.concatenate([words.run(head, span.first, span.count) for span in self.spans])
        return made

    def covers(self, place: int) -> bool:
        return any(span.first <= place < span.end for span in self.spans)

    def may_reach(self, incarnation: Incarnation) -> bool:
        if not self.initiator.ours:
            return True
        if not incarnation.ours:
            return self.name == incarnation.name
        return self.name == incarnation.name and not 0 < self.submitted() < incarnation.made

    def __str__(self) -> str:
        outcome = "under way" if self.ended is None else f"{self.code} at {self.ended}"
        spans = ", ".join(f"{span.first:#x}+{span.count:#x}" for span in self.spans[:4])
        more = f" and {len(self.spans) - 4} more" if len(self.spans) > 4 else ""
        return (
            f"#{self.number} {self.opcode} by {self.initiator.slot}.{self.initiator.number} to {self.name}, meant for"
            f" {self.meant.slot}.{self.meant.number}, region {self.region}, places {spans}{more}; buffer {self.buffer},"
            f" {self.way} {self.limit:.2f} s; {self.begun}..{outcome}{self.remark}"
        )


@dataclasses.dataclass(eq=False)
class Fill:
    """What an owner filled a region with, from a moment until another one."""

    head: int
    done: int
    over: int = FOREVER


class View(NamedTuple):
    """What was known of a span of a region at a moment: for each initiator, and for all of them, when the latest
    acknowledged WRITE to a place began; 0 for none."""

    span: Span
    since: int
    floors: dict[int, Moments]
    any: Moments


class State(enum.Enum):
    """Of a region."""

    CHANGING = "changing"  # a request that changes it is under way
    OFFERED = "offered"
    WITHDRAWN = "withdrawn"


@dataclasses.dataclass(eq=False)
class Violation(Exception):
    """A promise that was not kept: what was found, what was allowed, and the operations that have to do with it."""

    promise: Promise
    what: str
    found: Sequence[str] = ()
    allowed: Sequence[str] = ()
    operations: Sequence[Operation] = ()

    def __str__(self) -> str:
        return f"{self.promise.value}: {self.what}"


class Region:
    """A region that an incarnation of an engine offers."""

    def __init__(self, owner: Incarnation, index: int) -> None:
        self.owner = owner
        self.index = index
        self.state = State.CHANGING
        self.changed = 0  # when its state changed last
        self.fills: list[Fill] = []
        self.offers: list[tuple[int, int]] = []  # from and until when; the last one may be FOREVER
        self.cover: Optional[Fill] = None  # what it is covered with when it is taken back
        self._floors: dict[int, Moments] = {}
        self._any: Moments = np.zeros(PLACES, np.int64)
        self._operations: list[Operation] = []

    def __str__(self) -> str:
        return f"region {self.index} of {self.owner}"

    # What happens to it

    def offer(self, fill: Fill, cover: Fill, moment: int) -> None:
        """It was filled, and is about to be registered. When it is taken back, it is covered."""
        self.fills.append(fill)
        self.offers.append((moment, FOREVER))
        self.cover = cover

    def turn(self, state: State, moment: int) -> None:
        """Set its state. OFFERED: it was registered. WITHDRAWN: it was taken back, and covered."""
        self.state, self.changed = state, moment
        if state is State.WITHDRAWN:
            self.offers[-1] = (self.offers[-1][0], moment)
            self.fills[-1].over = moment

    def expect(self, operation: Operation) -> None:
        """A WRITE may reach it from now on."""
        if len(self._operations) >= KEPT:
            self._operations = [each for each in self._operations if not self._is_over(each)]
        self._operations.append(operation)

    def _is_over(self, operation: Operation) -> bool:
        return not any(self._alive(operation, self.view(span)).any() for span in operation.spans)

    def acknowledge(self, operation: Operation) -> None:
        floor = self._floors.setdefault(operation.initiator.number, np.zeros(PLACES, np.int64))
        for span in operation.spans:
            for moments in (floor, self._any):
                part = moments[span.first : span.end]
                np.maximum(part, operation.begun, out=part)

    # What it may hold

    def view(self, span: Span, moment: int = FOREVER) -> View:
        """What is known of a span now. It changes with the region, unless it is kept."""
        floors = {number: floor[span.first : span.end] for number, floor in self._floors.items()}
        return View(span, moment, floors, self._any[span.first : span.end])

    def keep(self, span: Span, moment: int) -> View:
        """What is known of a span now, to be looked at later."""
        view = self.view(span, moment)
        return View(span, moment, {n: f.copy() for n, f in view.floors.items()}, view.any.copy())

    def was_offered(self, since: int, until: int) -> bool:
        return any(start <= until and end >= since for start, end in self.offers)

    def wrong(self, found: Words, view: View, known: Operations) -> Mask:
        """Which of the words at a span may not be there."""
        heads = words.heads(found)
        bounds = [0, *(np.flatnonzero(heads[1:] != heads[:-1]) + 1).tolist(), len(found)]
        expected = np.arange(view.span.first, view.span.end, dtype=np.uint64)
        wrong: Mask = words.places(found) != expected
        for start, end in zip(bounds, bounds[1:]):
            if is_of_mooncake(int(heads[start]), known):
                wrong[start:end] = False
                continue
            allowed = self._allowed(int(heads[start]), part(view, start, end), known)
            if allowed is not True:
                wrong[start:end] |= ~np.asarray(allowed)
        torn = np.flatnonzero(wrong)
        for index in torn.tolist() if len(torn) <= TORN else ():
            if not self._is_torn(int(found[index]), part(view, index, index + 1)):
                break
            wrong[index] = False
        return wrong

    def _allowed(self, head: int, view: View, known: Operations) -> Union[bool, Mask]:
        kind = words.kind_of(head)
        if kind == Kind.INITIAL:
            fill = next((each for each in self.fills if each.head == head and each.over >= view.since), None)
            return False if fill is None else view.any <= fill.done
        operation = known.get(words.number_of(head))
        if operation is None or not operation.writes or not self._expects(operation):
            return False
        if head == operation.head(Kind.PAYLOAD):
            return self._alive(operation, view)
        # Mooncake may send what the buffer of a WRITE that it gave up holds by now.
        weak = not operation.initiator.ours and not operation.acknowledged
        return self._alive(operation, view) if weak and kind in (Kind.RETURNED, Kind.PAYLOAD) else False

    def _expects(self, operation: Operation) -> bool:
        return operation.begun > 0 and operation.region == self.index and operation.may_reach(self.owner)

    def _alive(self, operation: Operation, view: View) -> Mask:
        """Where the payload of a WRITE may be."""
        span = view.span
        alive: Mask = np.zeros(span.count, np.bool_)
        for each in operation.spans:
            if each.meets(span):
                alive[max(each.first, span.first) - span.first : min(each.end, span.end) - span.first] = True
        floor = view.floors.get(operation.initiator.number)
        may_come_late = not operation.initiator.ours and not operation.acknowledged
        if floor is not None and operation.ended is not None and not may_come_late:
            alive &= floor <= operation.ended
        return alive

    def _is_torn(self, word: int, view: View) -> bool:
        """Whether each byte of a word is that of one that may be there: it is being overwritten, or was in part."""
        may = [value.to_bytes(words.WORD, "little") for value in self.candidates(view)]
        return all(any(byte == each[i] for each in may) for i, byte in enumerate(word.to_bytes(words.WORD, "little")))

    def candidates(self, view: View) -> list[int]:
        """The words that may be at a view's first place."""
        place = view.span.first
        heads = [fill.head for fill in self.fills if fill.over >= view.since and view.any[0] <= fill.done]
        heads += [each.head(Kind.PAYLOAD) for each in self.concerning(place) if self._alive(each, view)[0]]
        return [head << 20 | place for head in heads]

    def concerning(self, place: int) -> list[Operation]:
        """The WRITEs that it expects at a place."""
        return [each for each in self._operations if each.covers(place) and each.may_reach(self.owner)]


def is_of_mooncake(head: int, known: Operations) -> bool:
    """Whether words are of an operation of Mooncake's: those of WRITEs, and what its buffers held before and after."""
    if words.kind_of(head) not in (Kind.PAYLOAD, Kind.RETURNED, Kind.EMPTY, Kind.CANARY):
        return False
    operation = known.get(words.number_of(head))
    return operation is not None and not operation.initiator.ours


def part(view: View, start: int, end: int) -> View:
    """A part of a view, from and to indexes in it."""
    floors = {number: floor[start:end] for number, floor in view.floors.items()}
    return View(Span(view.span.first + start, end - start), view.since, floors, view.any[start:end])


def _view(incarnation: Incarnation, index: int, operation: Operation, kept: Kept) -> View:
    """What was known of a span of an operation when that began: nothing of an engine that was not there yet."""
    if incarnation.number in kept:
        return kept[incarnation.number][index]
    span = operation.spans[index]
    return View(span, operation.begun, {}, np.zeros(span.count, np.int64))


Operations = dict[int, Operation]  # by number
Kept = dict[int, list[View]]  # by number of the incarnation, for each span of an operation


class Model:
    """What is known of a world. It is used by one thread."""

    def __init__(self) -> None:
        self.operations: Operations = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.ports_held_until = 0.0  # by forked children of processes that were killed; by time.monotonic()
        self._moments = itertools.count(1)
        self._numbers = itertools.count(1)
        self._incarnations: list[Incarnation] = []

    def now(self) -> int:
        return next(self._moments)

    # Engines and their memory

    def incarnate(self, slot: int, ours: bool) -> Incarnation:
        """An engine that is about to be made."""
        made = Incarnation(len(self._incarnations) + 1, slot, ours, made=time.monotonic())
        made.regions = [Region(made, index) for index in range(arena.REGIONS)]
        self._incarnations.append(made)
        return made

    def named(self, incarnation: Incarnation, name: str) -> None:
        """The engine was made, and has this name."""
        incarnation.name = name
        for operation in self.operations.values():
            if operation.writes and operation.begun and operation.may_reach(incarnation):
                incarnation.regions[operation.region].expect(operation)
                if operation.acknowledged and operation.initiator.ours:
                    self._acknowledge(operation)

    def ends(self, incarnation: Incarnation) -> None:
        """The end of an engine is about to begin."""
        incarnation.ended = self.now()

    def is_over(self, incarnation: Incarnation) -> None:
        """The end of an engine has come."""
        incarnation.over = self.now()

    def fill(self, kind: Kind, owner: Incarnation) -> Fill:
        """Words that an owner fills offered memory with."""
        return Fill(words.head(kind, owner.slot, owner.number, next(self._numbers)), self.now())

    def _reached(self, operation: Operation) -> list[Incarnation]:
        """The incarnations that an operation may reach, but for those that had ended before it began."""
        return [
            each
            for each in self._incarnations
            if operation.may_reach(each) and (each.over is None or each.over >= operation.begun)
        ]

    def last_named(self, name: str) -> Incarnation:
        return next(each for each in reversed(self._incarnations) if each.name == name)

    # Operations

    def plan(
        self,
        opcode: str,
        initiator: Incarnation,
        meant: Incarnation,
        region: int,
        spans: Sequence[Span],
        way: str,
        limit: float,
        buffer: int,
    ) -> Operation:
        """An operation whose words can be put into its buffer; it has not begun."""
        made = Operation(
            next(self._numbers), opcode, initiator, meant.name, meant, region, spans, way, limit, buffer
        )  # fmt: skip
        self.operations[made.number] = made
        return made

    def begin(self, operation: Operation, submitted: Callable[[], float]) -> Kept:
        """Its request is about to be sent. `submitted` is Operation.submitted until it has ended. For a READ, the
        answer is what is known now of its spans."""
        operation.begun, operation.submitted = self.now(), submitted
        kept: Kept = {}
        for incarnation in self._reached(operation):
            region = incarnation.regions[operation.region]
            if operation.writes:
                region.expect(operation)
            else:
                kept[incarnation.number] = [region.keep(span, operation.begun) for span in operation.spans]
        return kept

    def end(self, operation: Operation, code: int) -> None:
        """Its answer has come, or will not come any more. An acknowledged WRITE is in its place from now on."""
        operation.ended = self.now()
        operation.code = code
        submitted = operation.submitted()
        operation.submitted = lambda: submitted
        if operation.writes and code == 0:
            self._acknowledge(operation)

    def _acknowledge(self, operation: Operation) -> None:
        """A WRITE was acknowledged, by the only incarnation that it may have reached; it is not looked for where there
        are several. Where one of Mooncake's went is known only while no engine has ended."""
        found = self._offered(operation)
        if not operation.initiator.ours:
            if any(each.ended is not None for each in self._incarnations):
                return
            found = [each for each in found if each.name == operation.name]
        if len(found) == 1:
            found[0].regions[operation.region].acknowledge(operation)

    def _offered(self, operation: Operation) -> list[Incarnation]:
        """The incarnations that an operation may have had its success from. If there are none, and none whose name is
        not known yet, that is a violation."""
        assert operation.ended is not None
        found = [
            each
            for each in self._reached(operation)
            if not each.ours or each.regions[operation.region].was_offered(operation.begun, operation.ended)
        ]
        if not found and operation.initiator.ours and all(each.name for each in self._incarnations):
            promise = Promise.WITHDRAWN if operation.meant.ended is None else Promise.INCARNATION
            what = f"no engine that the operation may reach offered the memory while it succeeded: {operation}"
            raise Violation(promise, what, operations=[operation])
        return found

    # Looking

    def check_memory(self, region: Region, found: Words, view: View) -> None:
        """Judge what a span of a region holds. `view` was taken before, and the region has been offered since."""
        self.counts["words of memory"] += len(found)
        wrong = region.wrong(found, view, self.operations)
        if wrong.any():
            raise self._explain(found, wrong, [region], [view], f"in {region}")

    def check_covered(self, region: Region, found: Words) -> None:
        """Judge memory that was taken back: it must hold what it was covered with."""
        assert region.cover is not None
        self.counts["words taken back"] += len(found)
        wrong = found != words.run(region.cover.head, 0, len(found))
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise Violation(
                Promise.WITHDRAWN,
                f"{wrong.sum()} words of {region} changed after it had been taken back, first at place {place:#x}",
                samples(found, wrong),
                [words.describe(int(region.cover.head << 20 | place))],
                self._around(found, wrong, [region], place),
            )

    def check_rest(self, operation: Operation, found: Words) -> None:
        """Judge the buffer of an operation that has ended: nothing but the checker's cover may be in it."""
        self.counts["words at rest"] += len(found)
        kind = Kind.RETURNED if operation.writes else Kind.CANARY
        expected = operation.words(kind)
        wrong = found != expected
        if operation.initiator.ours and wrong.any():
            raise Violation(
                Promise.RETURNED if operation.writes else Promise.READ,
                f"{wrong.sum()} words of the buffer changed after the call had returned: {operation}",
                samples(found, wrong),
                [words.describe(int(expected[np.flatnonzero(wrong)[0]]))],
                [operation],
            )

    def check_read(self, operation: Operation, found: Words, kept: Kept) -> None:
        """Judge what a READ returned with success, in the order of its buffer."""
        self.counts["words read"] += len(found)
        offered, offset = self._offered(operation), 0
        if not offered:
            return
        for index, span in enumerate(operation.spans):
            part_of = found[offset : offset + span.count]
            self._check_span(operation, part_of, [(each, _view(each, index, operation, kept)) for each in offered])
            offset += span.count

    def _check_span(self, operation: Operation, found: Words, sources: Sequence[tuple[Incarnation, View]]) -> None:
        """Judge a span of a READ that one of some incarnations may have answered."""
        wrong: Mask = np.ones(len(found), np.bool_)
        regions, views = [each.regions[operation.region] for each, _ in sources], [view for _, view in sources]
        for region, view in zip(regions, views):
            wrong &= region.wrong(found, view, self.operations)
        if not operation.initiator.ours:
            # What it promises of READs is not looked at; that its peer gives nothing that it has taken back is.
            wrong &= words.heads(found) >> np.uint64(40) == np.uint64(Kind.WITHDRAWN)
        if wrong.any():
            raise self._explain(
                found, wrong, regions, views, f"returned by a READ with success: {operation}", operation
            )

    # Violations

    def _explain(
        self,
        found: Words,
        wrong: Mask,
        regions: Sequence[Region],
        views: Sequence[View],
        where: str,
        read: Optional[Operation] = None,
    ) -> Violation:
        index = int(np.flatnonzero(wrong)[0])
        place = views[0].span.first + index
        promise, why = self._reason(int(found[index]), place, regions)
        if read and int(found[index]) == read.head(Kind.EMPTY) << 20 | place:
            promise, why = Promise.READ, "it was in the destination buffer before the call"
        allowed = [
            words.describe(word)
            for region, view in zip(regions, views)
            for word in region.candidates(part(view, index, index + 1))
        ]
        what = f"{wrong.sum()} of {len(found)} words {where}, first at place {place:#x}: {why}"
        return Violation(promise, what, samples(found, wrong), allowed, self._around(found, wrong, regions, place))

    def _reason(self, word: int, place: int, regions: Sequence[Region]) -> tuple[Promise, str]:
        head = word >> 20
        kind, operation = words.kind_of(head), self.operations.get(words.number_of(head))
        if kind == Kind.RETURNED and operation:
            return Promise.RETURNED, "it was put into a source buffer after its call had returned"
        if kind == Kind.WITHDRAWN:
            return Promise.WITHDRAWN, "it was put into offered memory after that had been taken back"
        if kind in (Kind.UNUSED, Kind.EMPTY, Kind.CANARY):
            return Promise.RETURNED, "no call was to send it: the buffer was another call's, or nobody's"
        if kind == Kind.INITIAL:
            own = any(fill.head == head for region in regions for fill in region.fills)
            if own:
                return Promise.ACKNOWLEDGED, "a WRITE that was acknowledged is not there"
            return Promise.INCARNATION, "it is memory of another incarnation, or of an earlier registration"
        if kind != Kind.PAYLOAD or operation is None or operation.head(Kind.PAYLOAD) != head:
            return Promise.PLACE, "nobody wrote that"
        if operation.begun == 0:
            return Promise.RETURNED, "the call that is to send it has not begun"
        if not any(operation.may_reach(region.owner) for region in regions):
            return Promise.INCARNATION, f"it was meant for {operation.meant}"
        if operation.region != regions[0].index or not operation.covers(place) or word & (words.PLACES - 1) != place:
            return Promise.PLACE, "it belongs to another place"
        return Promise.ACKNOWLEDGED, "a later WRITE of the same initiator has been acknowledged"

    def _around(self, found: Words, wrong: Mask, regions: Iterable[Region], place: int) -> list[Operation]:
        """The operations that have to do with words that are wrong, and with their place."""
        numbers = {words.number_of(int(head)) for head in np.unique(words.heads(found[wrong]))[:8].tolist()}
        numbers |= {each.number for region in regions for each in region.concerning(place)[-12:]}
        return [self.operations[number] for number in sorted(numbers) if number in self.operations]


def samples(found: Words, wrong: Mask) -> list[str]:
    """Some of the words that are wrong, one of each head."""
    chosen = found[wrong]
    _, firsts = np.unique(words.heads(chosen), return_index=True)
    return [words.describe(int(chosen[index])) for index in sorted(firsts.tolist())[:8]]
