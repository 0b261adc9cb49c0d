"""A seed means the same choices each time, and a run that did too little does not pass."""

from __future__ import annotations

import collections
import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownership import arena, driver, model, plan, report

KINDS = len(plan.WORLDS)


def some_worlds(seed: int, *only: str, faults: tuple[str, ...] = tuple(plan.FAULTS)) -> list[plan.World]:
    return list(itertools.islice(plan.worlds(seed, only, faults, ()), KINDS))


def some_steps(world: plan.World) -> list[object]:
    """The first steps of some streams of a world."""
    streams: tuple[Iterator[object], ...] = (
        plan.transfers(world, 0, 0),
        plan.withdrawals(world, 0),
        plan.faults(world, 0),
    )
    return [step for stream in streams for step in itertools.islice(stream, 50)]


def test_a_seed_has_the_same_choices_each_time() -> None:
    for one, other in zip(some_worlds(7), some_worlds(7)):
        assert one == other
        assert some_steps(one) == some_steps(other)


def test_seeds_differ() -> None:
    assert some_worlds(7) != some_worlds(8)


def test_every_kind_of_world_comes_before_one_comes_again() -> None:
    assert {(w.peers, w.way, w.memory) for w in some_worlds(7)} == set(plan.WORLDS)


def test_every_fault_is_in_some_world() -> None:
    assert {fault for world in some_worlds(7) for fault in world.faults} == set(plan.FAULTS)


def test_only_the_worlds_that_were_asked_for_are_there() -> None:
    assert {(w.peers, w.way) for w in some_worlds(7, "kvferry", "tcp")} == {("kvferry", "tcp")}
    with pytest.raises(ValueError):
        some_worlds(7, "mooncake", "samehost")


def test_the_places_of_a_transfer_do_not_meet() -> None:
    for world in some_worlds(7):
        for step in itertools.islice(plan.transfers(world, 0, 0), 200):
            taken = sorted(step.spans, key=lambda span: span.first)
            assert all(one.end <= other.first for one, other in zip(taken, taken[1:]))
            assert taken[-1].end <= model.PLACES and all(span.count > 0 for span in taken)
            assert sum(span.count for span in taken) * 8 <= arena.SIZE


def test_a_run_that_did_nothing_does_not_pass() -> None:
    worlds = [(world, report.LONG_ENOUGH) for world in some_worlds(7)]
    found = report.too_little(collections.Counter(), worlds)
    assert len(found) == len(report.LEAST) + len(plan.FAULTS)


def test_faults_that_were_not_asked_for_are_not_missed() -> None:
    worlds = [(world, 8.0) for world in some_worlds(7, faults=("stop",))]
    plenty = collections.Counter(dict.fromkeys([*report.LEAST, "fault stop"], 1 << 40))
    assert report.too_little(plenty, worlds) == []


EVERYTHING = dict.fromkeys(
    [
        *report.LEAST,
        *(f"fault {fault}" for fault in plan.FAULTS),
        *(name for name, _ in report.LEAST_OF_FAULTS.values()),
    ],
    1 << 40,
)


class SlowWorld:
    """A world that takes ten seconds, in which everything happens but resets, which come late in the run."""

    now = 0.0
    resets_from = 0.0

    def __init__(self, *_: Any) -> None:
        self.model = self
        self.counts = collections.Counter(EVERYTHING)
        self.violations: list[model.Violation] = []

    async def run(self, seconds: float) -> None:
        self.counts["fault reset"] = int(SlowWorld.now >= SlowWorld.resets_from)
        SlowWorld.now += 10.0


@pytest.mark.parametrize("resets_from", [150.0, float("inf")], ids=["late", "never"])
def test_a_run_that_has_done_too_little_goes_on_until_it_has_done_enough_or_took_too_long(
    resets_from: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowWorld, "now", 0.0)
    monkeypatch.setattr(SlowWorld, "resets_from", resets_from)
    monkeypatch.setattr(driver, "Running", SlowWorld)
    monkeypatch.setattr(driver, "time", types.SimpleNamespace(monotonic=lambda: SlowWorld.now))
    _, counts, lived = driver.run(plan.worlds(7, (), tuple(plan.FAULTS), ()), 100.0, tmp_path, False, 7)
    assert len(lived) == 10
    if resets_from == float("inf"):
        assert [text.split(":")[0] for text in report.too_little(counts, lived)] == ["fault reset"]
        assert SlowWorld.now > driver.PATIENCE * 100.0
    else:
        assert not report.too_little(counts, lived)
        assert 150.0 < SlowWorld.now < 200.0
