"""Random transfers between two of our engines, against a plain model of both memories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.memory import Memory, Span, addresses, apply
from support.pairs import Pair, running
from support.peers import Peers

SIZE = 1 << 20
EXAMPLES = 60


@pytest.fixture(scope="module", params=("default", "v1", "no-pool"))
def two_of_ours(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Pair]:
    yield from running(module_peers, ("ours", request.param), SIZE)


@st.composite
def cuts(draw: st.DrawFn, count: int) -> list[tuple[int, int]]:
    """Draw `count` ranges that do not overlap, in any order: the parts between so many random places."""
    places = draw(st.lists(st.integers(0, SIZE), min_size=2 * count, max_size=2 * count, unique=True).map(sorted))
    ranges = list(zip(places[::2], places[1::2]))
    if draw(st.booleans()):  # neighbours touch
        ranges = list(zip(places[:count], places[1 : count + 1]))
    return list(draw(st.permutations(ranges)))


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[str, str, list[Span]]]:
    """Draw transfers (direction, opcode, spans) none of which touches a byte of another, on either side."""
    count = draw(st.integers(1, 40))
    near, far = draw(cuts(count)), draw(cuts(count))
    spans = []
    for (a, a_end), (b, b_end) in zip(near, far):
        spans.append((a, b, min(a_end - a, b_end - b)))
    kinds = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    drawn = []
    for kind in sorted(set(kinds)):
        direction, opcode = ("theirs-to-ours", "ours-to-theirs")[kind & 1], ("read", "write")[kind >> 1]
        mine = [span for span, k in zip(spans, kinds) if k == kind]
        drawn.append((direction, opcode, mine if kind & 1 else [(b, a, n) for a, b, n in mine]))
    return drawn


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=batches(), seed=st.integers(0, 2**32 - 1))
def test_batches_at_once_do_to_both_memories_what_the_model_says(
    two_of_ours: Pair, drawn: list[tuple[str, str, list[Span]]], seed: int
) -> None:
    two_of_ours.fill(seed)
    pending = []
    for direction, opcode, spans in drawn:
        local, remote = two_of_ours.sides(direction)
        pending.append(local.peer.start_move(remote.peer.name, opcode, addresses(local, remote, spans), "async_opcode"))
        apply(opcode, local, remote, spans)
    assert [p.result()["code"] for p in pending] == [0] * len(pending)
    check(two_of_ours.ours, two_of_ours.theirs)


def check(*memories: Memory) -> None:
    for memory in memories:
        memory.check()
