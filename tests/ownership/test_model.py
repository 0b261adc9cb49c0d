"""The model finds what it is there to find, and nothing else: each test puts words where they may, or may not, be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Optional

import numpy as np
import pytest

from ownership import words
from ownership.model import (
    PLACES,
    WHOLE,
    Incarnation,
    Kept,
    Model,
    Operation,
    Promise,
    Region,
    Span,
    State,
    Violation,
)
from ownership.words import Kind, Words

HERE = Span(100, 50)


def now() -> Callable[[], float]:
    """A call that has been submitted now."""
    submitted = time.monotonic()
    return lambda: submitted


class Scene:
    """An initiator and a target with one region that is looked at, as a slot would have them."""

    def __init__(self, initiator_is_ours: bool = True, target_is_ours: bool = True) -> None:
        self.model = Model()
        self.initiator = self.engine(0, initiator_is_ours, "initiator:1")
        self.target = self.engine(1, target_is_ours, "target:1")
        self.memory = self.filled(self.target)

    def engine(self, slot: int, ours: bool, name: str) -> Incarnation:
        made = self.unnamed(slot, ours)
        self.name(made, name)
        return made

    def unnamed(self, slot: int, ours: bool) -> Incarnation:
        """An engine that is about to be made."""
        made = self.model.incarnate(slot, ours)
        for region in made.regions:
            fill, cover = self.model.fill(Kind.INITIAL, made), self.model.fill(Kind.WITHDRAWN, made)
            region.offer(fill, cover, self.model.now())
        return made

    def name(self, made: Incarnation, name: str) -> None:
        self.model.named(made, name)
        for region in made.regions:
            region.turn(State.OFFERED, self.model.now())

    @staticmethod
    def filled(owner: Incarnation) -> Words:
        return words.run(owner.regions[0].fills[-1].head, 0, PLACES)

    @property
    def region(self) -> Region:
        return self.target.regions[0]

    def plan(self, opcode: str, spans: Sequence[Span] = (HERE,), initiator: Optional[Incarnation] = None) -> Operation:
        return self.model.plan(opcode, initiator or self.initiator, self.target, 0, spans, "sync", 1.0, 2)

    def begin(self, opcode: str = "write", spans: Sequence[Span] = (HERE,)) -> Operation:
        operation = self.plan(opcode, spans)
        self.model.begin(operation, now())
        return operation

    def done(
        self, code: int = 0, spans: Sequence[Span] = (HERE,), initiator: Optional[Incarnation] = None
    ) -> Operation:
        """A WRITE that ended with that code, and wrote nothing."""
        operation = self.plan("write", spans, initiator)
        self.model.begin(operation, now())
        self.model.end(operation, code)
        return operation

    def put(self, operation: Operation, kind: Kind = Kind.PAYLOAD, span: Span = HERE) -> None:
        self.memory[span.first : span.end] = words.run(operation.head(kind), span.first, span.count)

    def read(self) -> tuple[Operation, Kept]:
        operation = self.plan("read")
        return operation, self.model.begin(operation, now())

    def check(self) -> None:
        self.model.check_memory(self.region, self.memory, self.region.view(WHOLE))

    def check_finds(self, promise: Promise) -> None:
        with pytest.raises(Violation) as found:
            self.check()
        assert found.value.promise is promise, str(found.value)

    def check_read(self, operation: Operation, kept: Kept) -> None:
        self.model.end(operation, 0)
        self.model.check_read(operation, self.memory[HERE.first : HERE.end], kept)

    def check_read_finds(self, promise: Promise, operation: Operation, kept: Kept) -> None:
        with pytest.raises(Violation) as found:
            self.check_read(operation, kept)
        assert found.value.promise is promise, str(found.value)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# What may be.


def test_memory_that_nobody_wrote_is_as_it_was_filled(scene: Scene) -> None:
    scene.check()


def test_a_write_under_way_may_have_written_some_of_its_places(scene: Scene) -> None:
    scene.put(scene.begin(), span=Span(110, 3))
    scene.check()


def test_a_write_that_failed_may_come_late_while_no_later_one_was_acknowledged(scene: Scene) -> None:
    failed = scene.done(-1)
    scene.done(-1)
    scene.put(failed)
    scene.check()


def test_of_two_writes_at_the_same_time_either_may_be_the_last(scene: Scene) -> None:
    one = scene.begin()
    other = scene.begin()
    scene.model.end(one, 0)
    scene.model.end(other, 0)
    for operation in (one, other):
        scene.put(operation)
        scene.check()


def test_writes_of_two_initiators_have_no_order(scene: Scene) -> None:
    other = scene.engine(2, True, "other:1")
    first = scene.done()
    scene.put(first)
    scene.done(initiator=other)
    scene.check()


def test_a_word_that_is_overwritten_in_part_may_be_there(scene: Scene) -> None:
    before = scene.memory[HERE.first]
    operation = scene.begin()
    half = np.uint64(0xFFFF_FFFF)
    scene.memory[HERE.first] = before & ~half | np.uint64(operation.head(Kind.PAYLOAD) << 20 | HERE.first) & half
    scene.check()


# What may not be.


@pytest.mark.parametrize("kind", (Kind.RETURNED, Kind.CANARY, Kind.EMPTY, Kind.UNUSED))
def test_bytes_of_a_buffer_that_is_the_callers_again_are_found(scene: Scene, kind: Kind) -> None:
    scene.put(scene.done(-1), kind)
    scene.check_finds(Promise.RETURNED)


def test_bytes_of_a_call_that_has_not_begun_are_found(scene: Scene) -> None:
    scene.put(scene.plan("write"))
    scene.check_finds(Promise.RETURNED)


def test_a_given_up_write_over_a_later_one_that_was_acknowledged_is_found(scene: Scene) -> None:
    failed = scene.done(-1)
    scene.done()
    scene.put(failed, span=Span(HERE.end - 1, 1))
    scene.check_finds(Promise.ACKNOWLEDGED)


def test_a_given_up_write_may_be_where_no_later_one_was_acknowledged(scene: Scene) -> None:
    failed = scene.done(-1)
    later = scene.done(spans=[Span(100, 10), Span(140, 10)])
    scene.put(failed)
    for span in later.spans:
        scene.put(later, span=span)
    scene.check()


def test_an_acknowledged_write_that_is_not_there_is_found(scene: Scene) -> None:
    scene.done()
    scene.check_finds(Promise.ACKNOWLEDGED)


def test_an_acknowledged_write_that_is_there_but_for_a_word_is_found(scene: Scene) -> None:
    missing = scene.memory[120]
    scene.put(scene.done())
    scene.check()
    scene.memory[120] = missing
    scene.check_finds(Promise.ACKNOWLEDGED)


def test_bytes_at_a_wrong_place_are_found(scene: Scene) -> None:
    operation = scene.begin()
    scene.memory[HERE.first + 1] = np.uint64(operation.head(Kind.PAYLOAD) << 20 | HERE.first)
    scene.check_finds(Promise.PLACE)


def test_bytes_outside_of_what_was_written_are_found(scene: Scene) -> None:
    scene.put(scene.begin(), span=Span(HERE.end, 1))
    scene.check_finds(Promise.PLACE)


def test_bytes_that_nobody_wrote_are_found(scene: Scene) -> None:
    scene.memory[7] = np.uint64(0xFEED)
    scene.check_finds(Promise.PLACE)


# Incarnations.


def restarted(scene: Scene, name: str) -> None:
    """End the target's engine, unless its end has begun, and make another one over its memory."""
    if scene.target.ended is None:
        scene.model.ends(scene.target)
    scene.model.is_over(scene.target)
    scene.target = scene.engine(1, scene.target.ours, name)
    scene.memory = scene.filled(scene.target)


@pytest.mark.parametrize("name", ("target:1", "target:2"))
def test_bytes_for_an_incarnation_that_is_gone_are_found_in_the_next_one(scene: Scene, name: str) -> None:
    operation = scene.begin()
    restarted(scene, name)
    scene.put(operation)
    scene.check_finds(Promise.INCARNATION)


def test_bytes_submitted_after_the_end_of_an_engine_are_found_in_one_that_was_begun_later(scene: Scene) -> None:
    scene.model.ends(scene.target)
    operation = scene.begin()
    restarted(scene, "target:1")
    scene.put(operation)
    scene.check_finds(Promise.INCARNATION)


def test_bytes_for_a_name_are_found_in_an_engine_of_another_name(scene: Scene) -> None:
    operation = scene.begin()
    scene.target = scene.engine(2, True, "other:1")
    scene.memory = scene.filled(scene.target)
    scene.put(operation)
    scene.check_finds(Promise.INCARNATION)


def test_a_call_that_was_asked_for_before_the_end_of_an_engine_and_submitted_after_it_may_reach_the_next_one(
    scene: Scene,
) -> None:
    operation = scene.plan("write")
    submitted: list[float] = []
    scene.model.begin(operation, lambda: submitted[0] if submitted else 0.0)
    restarted(scene, "target:1")
    submitted.append(now()())
    scene.put(operation)
    scene.check()


def test_a_mooncake_target_may_be_written_to_by_its_name() -> None:
    scene = Scene(target_is_ours=False)
    operation = scene.begin()
    restarted(scene, "target:1")
    scene.put(operation)
    scene.check()


def test_a_success_that_no_engine_can_have_given_is_found(scene: Scene) -> None:
    operation = scene.begin()
    restarted(scene, "target:2")
    operation.begun, operation.submitted = scene.model.now(), now()
    with pytest.raises(Violation) as found:
        scene.model.end(operation, 0)
    assert found.value.promise is Promise.INCARNATION


# Memory that is taken back.


def withdrawn(scene: Scene) -> None:
    scene.region.turn(State.CHANGING, scene.model.now())
    scene.region.turn(State.WITHDRAWN, scene.model.now())
    assert scene.region.cover
    scene.memory = words.run(scene.region.cover.head, 0, PLACES)


def test_a_byte_that_changes_in_memory_that_was_taken_back_is_found(scene: Scene) -> None:
    operation = scene.begin()
    withdrawn(scene)
    scene.model.check_covered(scene.region, scene.memory)
    scene.put(operation, span=Span(100, 1))
    with pytest.raises(Violation) as found:
        scene.model.check_covered(scene.region, scene.memory)
    assert found.value.promise is Promise.WITHDRAWN


def test_a_read_of_what_was_put_into_memory_after_it_was_taken_back_is_found(scene: Scene) -> None:
    operation, kept = scene.read()
    withdrawn(scene)
    scene.check_read_finds(Promise.WITHDRAWN, operation, kept)


def test_a_mooncake_reader_must_not_get_what_was_taken_back_either() -> None:
    scene = Scene(initiator_is_ours=False)
    operation, kept = scene.read()
    withdrawn(scene)
    scene.check_read_finds(Promise.WITHDRAWN, operation, kept)


@pytest.mark.parametrize("opcode", ("read", "write"))
def test_a_success_while_the_memory_was_not_offered_is_found(scene: Scene, opcode: str) -> None:
    withdrawn(scene)
    operation, kept = scene.plan(opcode), None
    kept = scene.model.begin(operation, now())
    with pytest.raises(Violation) as found:
        scene.model.end(operation, 0)
        scene.model.check_read(operation, scene.memory[HERE.first : HERE.end], kept)
    assert found.value.promise is Promise.WITHDRAWN


def test_a_write_acknowledged_before_its_memory_was_offered_again_need_not_be_there(scene: Scene) -> None:
    operation = scene.begin()
    withdrawn(scene)
    fill, cover = (scene.model.fill(kind, scene.target) for kind in (Kind.INITIAL, Kind.WITHDRAWN))
    scene.region.offer(fill, cover, scene.model.now())
    scene.region.turn(State.OFFERED, scene.model.now())
    scene.memory = scene.filled(scene.target)
    scene.model.end(operation, 0)
    scene.check()


# READs.


def test_a_read_may_give_what_was_there_when_it_began(scene: Scene) -> None:
    operation, kept = scene.read()
    scene.done()
    scene.check_read(operation, kept)


def test_a_read_that_gives_what_was_overwritten_before_it_began_is_found(scene: Scene) -> None:
    scene.done()
    operation, kept = scene.read()
    scene.check_read_finds(Promise.ACKNOWLEDGED, operation, kept)


def test_a_read_that_brings_nothing_is_found(scene: Scene) -> None:
    operation, kept = scene.read()
    scene.put(operation, Kind.EMPTY)
    scene.check_read_finds(Promise.READ, operation, kept)


def test_a_read_of_another_engine_is_found(scene: Scene) -> None:
    operation, kept = scene.read()
    scene.memory = scene.filled(scene.engine(2, True, "other:1"))
    scene.check_read_finds(Promise.INCARNATION, operation, kept)


# Buffers at rest.


@pytest.mark.parametrize("opcode,promise", (("read", Promise.READ), ("write", Promise.RETURNED)))
def test_a_byte_that_changes_in_a_buffer_after_its_call_is_found(scene: Scene, opcode: str, promise: Promise) -> None:
    operation = scene.begin(opcode)
    scene.model.end(operation, -1)
    rests = operation.words(Kind.RETURNED if operation.writes else Kind.CANARY)
    scene.model.check_rest(operation, rests)
    rests[3] += np.uint64(1)
    with pytest.raises(Violation) as found:
        scene.model.check_rest(operation, rests)
    assert found.value.promise is promise


# Mooncake.


def test_what_mooncake_gave_up_may_come_late_whatever_its_buffer_holds() -> None:
    scene = Scene(initiator_is_ours=False)
    failed = scene.done(-1)
    scene.done()
    for kind in (Kind.PAYLOAD, Kind.RETURNED):
        scene.put(failed, kind)
        scene.check()


def test_what_mooncake_had_acknowledged_must_be_there() -> None:
    scene = Scene(initiator_is_ours=False)
    scene.done()
    scene.check_finds(Promise.ACKNOWLEDGED)


def test_what_an_engine_had_acknowledged_need_not_be_in_the_next_one_of_its_name(scene: Scene) -> None:
    later = scene.unnamed(2, True)
    operation = scene.plan("write")
    scene.model.begin(operation, float)
    scene.model.end(operation, 0)
    scene.model.ends(scene.target)
    scene.model.is_over(scene.target)
    scene.name(later, "target:1")
    scene.target, scene.memory = later, scene.filled(later)
    scene.check()


def test_what_mooncake_had_acknowledged_need_not_be_in_the_next_engine() -> None:
    scene = Scene(initiator_is_ours=False)
    scene.done()
    restarted(scene, "target:1")
    scene.check()


def test_what_we_gave_up_must_not_come_late_into_a_mooncake_target() -> None:
    scene = Scene(target_is_ours=False)
    failed = scene.done(-1)
    scene.done()
    scene.put(failed)
    scene.check_finds(Promise.ACKNOWLEDGED)


# Words.


def test_a_word_tells_what_it_is() -> None:
    word = words.head(Kind.PAYLOAD, 3, 0x123, 0xABCDE) << 20 | 0x4F
    assert words.describe(word) == "231230abcde0004f: payload, slot 3, incarnation 291, #703710, place 0x4f"
    assert words.number_of(word >> 20) == 0xABCDE
