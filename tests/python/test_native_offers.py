"""Offers: blocks that one peer may read or write, until they are revoked."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kvferry
from kvferry import Layout, Offer, Offered, Revoked, Transfer, plan
from support.inprocess import run_python
from support.native import Couple, couple, some_bytes

pytestmark = pytest.mark.each_path

LIMIT = 30.0  # seconds that anything here may take
TOKENS, ROW = 64, 256
BYTES = TOKENS * ROW


@pytest.fixture
def pair(path: str) -> Iterator[Couple]:
    with couple() as made:
        made.region.close()
        made.region = made.far.register(made.memory, access="none")
        yield made


def blocks(memory: Any, size: int) -> Layout:
    """Blocks of so many tokens, as many as the memory has."""
    return Layout(memory.reshape(-1, size, ROW), "block token dim")


def offered_to(pair: Couple, numbers: Any, **arguments: Any) -> tuple[Offer, Offered]:
    offer = pair.far.offer(blocks(pair.memory, 16).blocks(numbers), **arguments)
    return offer, Offered(offer.json())


def write(pair: Couple, source: Any, offered: Offered) -> Transfer:
    made = plan(blocks(source, 32).blocks([1, 0]), offered, TOKENS)
    return pair.near.open(offered).write(made)


def test_an_offer_is_served_until_it_is_revoked(pair: Couple) -> None:
    source = some_bytes(BYTES)
    offer, offered = offered_to(pair, [9, 2, 7, 30])
    assert offered.engine == pair.far.name
    assert write(pair, source, offered).result(LIMIT) == BYTES
    wanted = np.zeros_like(pair.memory)
    turned = np.concatenate((source[BYTES // 2 :], source[: BYTES // 2])).reshape(4, -1)
    blocks_of = wanted.reshape(-1, 16 * ROW)
    for i, block in enumerate((9, 2, 7, 30)):
        blocks_of[block] = turned[i]
    assert (pair.memory == wanted).all()
    offer.revoke()
    offer.revoke()
    pair.memory[:] = 0
    with pytest.raises(Revoked, match="the offer was revoked") as caught:
        write(pair, source, offered).result(LIMIT)
    assert caught.value.who == pair.far.name
    assert not pair.memory.any()
    with pytest.raises(kvferry.RangeRejected):
        pair.peer.write(source, pair.region.address).result(LIMIT)


def test_nothing_lands_after_revoke_while_a_peer_writes(pair: Couple) -> None:
    source = some_bytes(BYTES)
    for _ in range(20):
        offer, offered = offered_to(pair, [1, 2, 3, 4])
        transfers = [write(pair, source, offered) for _ in range(20)]
        offer.close()
        pair.memory[:] = 0
        for transfer in transfers:
            assert isinstance(transfer.exception(LIMIT), (type(None), Revoked, kvferry.PeerUnreachable))
        assert not pair.memory.any()


def test_access_is_what_the_offer_says(pair: Couple) -> None:
    memory = some_bytes(BYTES)
    pair.memory[:BYTES] = memory
    offer, offered = offered_to(pair, [0, 1, 2, 3], access="read")
    back = np.zeros_like(memory)
    reading = plan(offered.place(), blocks(back, 32).blocks([0, 1]), TOKENS)
    assert pair.near.open(offered).read(reading).result(LIMIT) == BYTES
    assert (back == memory).all()
    rest = plan(offered.place(first=60), blocks(back, 32).blocks([0]), 4)
    assert pair.near.open(offered).read(rest).result(LIMIT) == 4 * ROW
    assert (back[: 4 * ROW] == memory[60 * ROW :]).all()
    with pytest.raises(kvferry.TransferError) as caught:
        write(pair, memory, offered).result(LIMIT)
    assert not isinstance(caught.value, Revoked)
    offer.close()


def test_an_offer_may_be_for_one_transfer_or_for_a_time(pair: Couple) -> None:
    source = some_bytes(BYTES)
    _once, offered = offered_to(pair, [0, 1, 2, 3], once=True)
    assert write(pair, source, offered).result(LIMIT) == BYTES
    with pytest.raises(kvferry.TransferError):
        write(pair, source, offered).result(LIMIT)
    _short, offered = offered_to(pair, [4, 5, 6, 7], lifetime=0.01)
    threading.Event().wait(0.05)
    with pytest.raises(Revoked):
        write(pair, source, offered).result(LIMIT)


def test_an_offer_ends_with_its_last_reference_and_with_its_engine(pair: Couple) -> None:
    source = some_bytes(BYTES)
    offer: Any
    offer, offered = offered_to(pair, [0, 1, 2, 3])
    assert repr(offer) == f"<Offer of {pair.far.name}>"
    del offer
    gc.collect()
    with pytest.raises(Revoked):
        write(pair, source, offered).result(LIMIT)
    with offered_to(pair, [0, 1, 2, 3])[0] as offer:
        pair.far.close()
        offer.revoke()
    assert repr(offer) == f"<Offer of {pair.far.name}, closed>"
    with pytest.raises(kvferry.EngineClosed):
        offered_to(pair, [0, 1, 2, 3])


def test_what_cannot_be_offered_is_refused(pair: Couple) -> None:
    layout = blocks(pair.memory, 16)
    for place in (layout.blocks([1, 1]), layout.blocks([1 << 40]), layout.blocks([])):
        with pytest.raises(ValueError):
            pair.far.offer(place)
    with pytest.raises(ValueError, match="access must be one of"):
        pair.far.offer(layout.blocks([1]), "none")
    with pytest.raises(ValueError, match="more than 0 seconds"):
        pair.far.offer(layout.blocks([1]), lifetime=0)
    text = pair.far.offer(layout.blocks([1])).json()
    for wrong in ("", "{}", text[:-1], json.dumps({**json.loads(text), "key": "5"})):
        with pytest.raises(ValueError):
            Offered(wrong)
    assert str(Offered(text)) == f"<Offered by {pair.far.name}>"


def test_a_forked_child_reads_an_offer_again(path: str) -> None:
    done = run_python(
        """
import kvferry, numpy as np
engine = kvferry.Engine()
memory = np.zeros((4, 16, 256), np.uint8)
region = engine.register(memory, access="none")
layout = kvferry.Layout(memory, "block token dim")
offer = engine.offer(layout.blocks([1, 3]))
offered = kvferry.Offered(offer.json())

def check():
    mine = np.ones((1, 32, 256), np.uint8)
    made = kvferry.plan(kvferry.Layout(mine, "block token dim").blocks([0]), offered, 32)
    with kvferry.Engine() as own:
        assert own.open(offered).write(made).result() == 32 * 256
    try:
        offer.revoke()
    except kvferry.LibraryError as e:
        assert "fork" in str(e)

print(child(check))
print(memory.sum())
"""
    )
    assert done.stdout == f"0\n{32 * 256}\n", done.stderr
