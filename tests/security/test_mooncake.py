"""What Mooncake's engines and one with a secret say to each other, on the handshake port as well: where both sides are
refused, both say so."""

from __future__ import annotations

import pytest

from support import devices, wire
from support.memory import addresses, transfer
from support.peer import Peer
from support.peers import Peers
from support.venvs import VERSIONS

NEWEST = VERSIONS[-1]
MODES = ("off", "prefer", "require")
SIZE = 4096
REFUSED_HERE = "KVFERRY_SECURITY=require demands it here"


def pair(start_peer: Peers, secret: str, mode: str) -> tuple[Peer, Peer]:
    ours = devices.start(start_peer, KVFERRY_SECRET_FILE=secret, KVFERRY_SECURITY=mode).create()
    return ours, start_peer(NEWEST).create()


@pytest.mark.parametrize("mode", MODES)
def test_mooncake_s_notifications_arrive_or_are_refused_and_both_sides_say_so(
    start_peer: Peers, secret: str, mode: str
) -> None:
    ours, theirs = pair(start_peer, secret, mode)
    here, there = theirs.memory(SIZE, 1), ours.memory(SIZE, 2)
    message = ("from Mooncake", mode)
    if mode != "require":
        transfer(here, there, "write", [(0, 0, SIZE)], "batch_opcode", message)
        assert ours.ask("notifies", engine="main") == [list(message)]
        return
    moved = theirs.move(ours.name, "write", addresses(here, there, [(0, 0, SIZE)]), "batch_opcode", message)
    assert moved["code"] != 0
    assert ours.logs(REFUSED_HERE), ours.log()
    assert theirs.logs("KVFERRY_SECURITY=require"), theirs.log()
    there.check()
    assert ours.ask("notifies", engine="main") == []


@pytest.mark.parametrize("mode", MODES)
def test_notifications_for_mooncake_are_sent_or_refused_and_the_sender_says_why(
    start_peer: Peers, secret: str, mode: str
) -> None:
    ours, theirs = pair(start_peer, secret, mode)
    here, there = ours.memory(SIZE, 1), theirs.memory(SIZE, 2)
    message = ("for Mooncake", mode)
    if mode != "require":
        transfer(here, there, "write", [(0, 0, SIZE)], "batch_opcode", message)
        assert theirs.ask("notifies", engine="main") == [list(message)]
        return
    moved = ours.move(theirs.name, "write", addresses(here, there, [(0, 0, SIZE)]), "batch_opcode", message)
    assert moved["code"] != 0
    assert ours.logs("amid the TLS handshake"), ours.log()
    there.check()
    assert theirs.ask("notifies", engine="main") == []


@pytest.mark.parametrize("mode", MODES)
def test_mooncake_s_probe_and_request_for_a_descriptor_are_answered_or_refused(
    start_peer: Peers, secret: str, mode: str
) -> None:
    """A probe asks whether the engine lives. Mooncake takes a refusal of it for an answer, too."""
    ours, theirs = pair(start_peer, secret, mode)
    there = ours.memory(SIZE, 2)
    assert theirs.call("send_probe", ours.name) == 0
    if mode == "require":
        assert ours.logs('"probe"'), ours.log()
    assert theirs.call("get_first_buffer_address", ours.name) == (0 if mode == "require" else there.address)
    if mode == "require":
        assert ours.logs('"metadata"'), ours.log()


@pytest.mark.parametrize("mode", MODES)
def test_a_notification_as_mooncake_sends_it_is_taken_or_refused_with_a_reason(
    start_peer: Peers, secret: str, mode: str
) -> None:
    """Mooncake sends one only after a transfer, which is refused before it."""
    ours = devices.start(start_peer, KVFERRY_SECRET_FILE=secret, KVFERRY_SECURITY=mode).create()
    answer = wire.handshake(ours.name, wire.NOTIFY, b'{"name": "a", "notify_msg": "b"}')
    assert answer is not None
    taken = ours.ask("notifies", engine="main") == [["a", "b"]]
    assert taken == (mode != "require")
    assert (b"KVFERRY_SECURITY=require" in answer[1]) == (mode == "require")
    if mode == "require":
        assert ours.logs(REFUSED_HERE), ours.log()
