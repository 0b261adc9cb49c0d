"""The checker sees bytes that are not where they may be."""

from __future__ import annotations

import numpy as np

from .pages import PAGE, Kind, Pages, stray, word
from .report import quantile

OFFERED, PAYLOAD_WORD, EARLIER = word(Kind.OFFERED, 700), word(Kind.PAYLOAD, 700), word(Kind.PAYLOAD, 699)


def test_bytes_of_the_words_that_are_allowed_are_right_also_where_a_copy_ended_within_a_word() -> None:
    found = np.frombuffer(OFFERED * 64, np.uint8).copy()
    assert stray(found, [OFFERED]) == ""
    found[:99] = np.frombuffer(PAYLOAD_WORD * 64, np.uint8)[:99]
    assert stray(found, [OFFERED, PAYLOAD_WORD]) == ""
    assert "from byte 0 on" in stray(found, [OFFERED])


def test_one_byte_of_another_round_or_of_another_kind_is_found() -> None:
    for wrong in (EARLIER, word(Kind.REUSED, 700)):
        found = np.frombuffer(OFFERED * 64, np.uint8).copy()
        place = next(i for i in range(8) if wrong[i] not in (OFFERED[i], PAYLOAD_WORD[i]))
        found[80 + place] = wrong[place]
        assert "1 words, from byte 80 on" in stray(found, [OFFERED, PAYLOAD_WORD])


def test_pages_hold_what_they_are_filled_with() -> None:
    pages = Pages(3, "host")
    pages.fill([0, 2], OFFERED)
    assert pages.read(1).tobytes() == bytes(PAGE)
    assert pages.read(2).tobytes() == OFFERED * (PAGE // 8)
    pages.free()


def test_quantiles_are_of_the_times_that_were_seen() -> None:
    assert [quantile([3.0, 1.0, 2.0], part) for part in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]
