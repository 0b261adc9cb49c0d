"""Plans: our engine moves between layouts, to and from every other, compared byte for byte on both sides."""

from __future__ import annotations

import itertools

import pytest

from support.pairs import Pair
from support.plans import move_between_layouts

seeds = itertools.count(70)


@pytest.mark.parametrize("opcode", ("read", "write"))
def test_a_plan_moves_between_layouts_and_nothing_else(plain_pair: Pair, opcode: str) -> None:
    move_between_layouts(plain_pair, opcode, next(seeds))
