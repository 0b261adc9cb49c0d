"""Mistakes in the arguments of the native package: each is a TypeError or a ValueError that names the argument."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest

import kvferry
from kvferry import Engine, EngineClosed, Layout, Offered, PeerUnreachable, RangeRejected, plan
from support.inprocess import run_python

LIMIT = 30.0  # seconds that anything here may take
AXES = "block token head dim"

Call = Callable[[Any], Any]
untyped: Any = kvferry


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    """Two engines, an array and a layout of each, a plan between them, an open peer, and an offer."""
    with Engine() as near, Engine() as far:
        mine, theirs = np.zeros((4, 16, 2, 8), np.float16), np.zeros((4, 16, 2, 8), np.float16)
        made = SimpleNamespace(near=near, far=far, mine=mine, region=far.register(theirs), peer=near.open(far.name))
        made.here, made.there = Layout(mine, AXES), Layout(theirs, AXES)
        made.plan = plan(made.here.blocks([1]), made.there.blocks([2]), 16)
        made.offer = far.offer(made.there.blocks([1]))
        yield made


WRONG: dict[str, tuple[type[Exception], str, Call]] = {
    # Engines and peers
    "a list of addresses that is a number": (
        TypeError,
        "listen is a str or a list",
        lambda w: untyped.Engine(listen=5),
    ),
    "settings without names": (TypeError, "settings has values by the names", lambda w: untyped.Engine(settings=5)),
    "a setting of bytes": (
        TypeError,
        "settings has a str for 'MC_RETRY_CNT', not bytes",
        lambda w: untyped.Engine(settings={"MC_RETRY_CNT": b"3"}),
    ),
    "a setting with a lone surrogate": (
        ValueError,
        r"KVFERRY_NAMES must not have a lone surrogate: '\\ud800' is its character 1",
        lambda w: untyped.Engine(names="a\ud800"),
    ),
    "a setting whose name has a NUL": (
        ValueError,
        "the name of a setting must not have a NUL: it is character 1",
        lambda w: untyped.Engine(settings={"A\0B": "3"}),
    ),
    "a time limit that is a text": (
        TypeError,
        "a time limit is a number of seconds, not str",
        lambda w: untyped.Engine(timeout="5"),
    ),
    "no time to start": (ValueError, "start_timeout is more than 0", lambda w: untyped.Engine(start_timeout=-1)),
    "an engine as a peer": (TypeError, "a peer is opened by its name, .* not Engine", lambda w: w.near.open(w.far)),
    "a message to a number": (TypeError, "a peer is opened by its name, .* not int", lambda w: w.near.send(5, b"")),
    "an empty name": (ValueError, "the name of a peer is empty", lambda w: w.near.open("")),
    "a descriptor of no text": (
        TypeError,
        "is a str or bytes, not NoneType",
        lambda w: untyped.Descriptor.from_json(None),
    ),
    "a descriptor without a name": (TypeError, "the name of an engine must be a str", lambda w: untyped.Descriptor(5)),
    "a descriptor of numbers": (TypeError, "is a Range, not int", lambda w: untyped.Descriptor("a:1", [5])),
    "a description of an array": (TypeError, "is a Region, .*, not ndarray", lambda w: w.far.describe(w.mine)),
    "a lone surrogate in a message": (
        ValueError,
        r"a message must not have a lone surrogate: '\\ud800' is its character 1",
        lambda w: w.peer.send("a\ud800"),
    ),
    "a lone surrogate in the name of a message": (
        ValueError,
        "the name of a message must not have a lone surrogate",
        lambda w: w.peer.write(w.mine, w.region, notify=kvferry.Message(b"", "\ud800")),
    ),
    # Memory
    "access by no name": (TypeError, "access must be a str, not NoneType", lambda w: w.near.register(w.mine, None)),
    "an address that is a text": (TypeError, "remote must be an integer, not str", lambda w: w.peer.write(w.mine, "5")),
    "an address with a fraction": (TypeError, "address must be an integer, not float", lambda w: untyped.Range(1.5, 1)),
    "a negative size": (TypeError, "nbytes must be from 0 to", lambda w: untyped.Range(1, -1)),
    "an array of addresses": (
        TypeError,
        "remote must be an integer, not ndarray",
        lambda w: w.peer.write([w.mine, w.mine], np.zeros(2, np.uint64)),
    ),
    "NULL as local memory": (TypeError, "memory is needed: .* not NoneType", lambda w: w.peer.write(None, 5)),
    # Waiting
    "a transfer's limit that is a text": (TypeError, "a time limit is", lambda w: w.peer.write(w.mine, 5, timeout="5")),
    "a wait for a text": (TypeError, "a timeout is", lambda w: w.peer.write(w.mine, w.region).result("5")),
    "a wait for messages for a text": (TypeError, "a timeout is", lambda w: w.near.receive("5")),
    "a wait for messages for NaN": (ValueError, "a timeout is .* not NaN", lambda w: w.near.receive(math.nan)),
    "a wait for NaN": (ValueError, "a timeout is .* not NaN", lambda w: w.peer.write(w.mine, 5).wait(math.nan)),
    "a limit of NaN": (ValueError, "a time limit is .* not nan", lambda w: w.peer.write(w.mine, 5, timeout=math.nan)),
    # Layouts
    "axes in a list": (TypeError, "axes must be a str, not list", lambda w: untyped.Layout(w.mine, AXES.split())),
    "heads that are a number": (TypeError, "heads is a pair", lambda w: untyped.Layout(w.mine, AXES, heads=5)),
    "three numbers for heads": (TypeError, "heads is a pair", lambda w: untyped.Layout(w.mine, AXES, heads=(0, 2, 4))),
    "a head with a fraction": (
        TypeError,
        "heads must be an integer",
        lambda w: untyped.Layout(w.mine, AXES, heads=(0.5, 4)),
    ),
    "a negative head": (
        ValueError,
        "heads must not be negative",
        lambda w: untyped.Layout(w.mine, AXES, heads=(-1, 4)),
    ),
    "an element type that is a number": (
        TypeError,
        "dtype must be a str",
        lambda w: untyped.Layout(w.mine, AXES, dtype=5),
    ),
    "elements of another machine": (
        TypeError,
        "byte order of this machine",
        lambda w: untyped.Layout(foreign(w), AXES),
    ),
    "an array backwards": (
        ValueError,
        "the axis block has a stride of -512",
        lambda w: untyped.Layout(w.mine[::-1], AXES),
    ),
    "a layout and a number": (TypeError, "unsupported operand", lambda w: w.here + 5),
    "a layout of no text": (TypeError, "the text of a layout must be a str", lambda w: untyped.Layout.from_json(None)),
    "a table that is a number": (TypeError, "table must be integers .* not int", lambda w: w.here.blocks(5)),
    "a mask as a table": (TypeError, "this array is of bools", lambda w: w.here.blocks(np.array([True, False]))),
    "a negative block": (TypeError, "table must be integers", lambda w: w.here.blocks([-1])),
    # Plans
    "a layout as a side": (
        TypeError,
        "each side of a plan is .* not Layout",
        lambda w: untyped.plan(w.here, w.there, 16),
    ),
    "nothing as a side": (
        TypeError,
        "each side of a plan is .* not None",
        lambda w: untyped.plan(None, w.there.blocks([1]), 16),
    ),
    "a text as a side": (
        TypeError,
        "each side of a plan is .* not str",
        lambda w: untyped.plan("ab", w.there.blocks([1]), 16),
    ),
    "numbers as sides": (
        TypeError,
        "each side of a plan is .* not int",
        lambda w: untyped.plan([5], w.there.blocks([1]), 16),
    ),
    "tokens with a fraction": (TypeError, "tokens must be an integer", lambda w: both(w, 1.5)),
    "fewer than no tokens": (TypeError, "tokens must be from 0", lambda w: both(w, -1)),
    "tokens beyond 64 bits": (TypeError, "tokens must be from 0", lambda w: both(w, 1 << 70)),
    "partial as a text": (TypeError, "partial must be a bool", lambda w: both(w, 16, partial="False")),
    "a source that there is not": (
        ValueError,
        "there is no source 1: the plan has 1",
        lambda w: w.peer.write(w.plan, source=1),
    ),
    "a negative destination": (
        ValueError,
        "there is no destination -1",
        lambda w: w.peer.write(w.plan, destination=-1),
    ),
    "a source that is a text": (TypeError, "source must be an integer", lambda w: w.peer.write(w.plan, source="0")),
    "a source to wait for": (ValueError, "there is no source 7", lambda w: w.plan.write(w.near, w.far.name, source=7)),
    "no engine for a plan": (
        TypeError,
        "a kvferry.Engine or .* not NoneType",
        lambda w: w.plan.write(None, w.far.name),
    ),
    "no peers for a plan": (TypeError, "peers are named by a str", lambda w: w.plan.write(w.near, None)),
    "a peer that is no name": (
        TypeError,
        "peers are named by a str, .* not Peer",
        lambda w: w.plan.write(w.near, w.peer),
    ),
    "a plan's limit of no time": (
        ValueError,
        "a time limit is",
        lambda w: w.plan.write(w.near, w.far.name, timeout=-1),
    ),
    # Offers
    "offered to nobody": (TypeError, "access must be a str", lambda w: w.far.offer(w.there.blocks([1]), None)),
    "an offer for a list": (TypeError, "access must be a str", lambda w: w.far.offer(w.there.blocks([1]), ["read"])),
    "an offer for none": (ValueError, "access must be one of", lambda w: w.far.offer(w.there.blocks([1]), "none")),
    "a layout that is offered": (TypeError, "what is offered is .* not Layout", lambda w: w.far.offer(w.there)),
    "a region that is offered": (TypeError, "what is offered is .* not Region", lambda w: w.far.offer(w.region)),
    "an offer that is offered": (
        TypeError,
        "memory of another process",
        lambda w: w.near.offer(Offered(w.offer.json()).place()),
    ),
    "a lifetime that is a text": (TypeError, "lifetime of an offer is a num", lambda w: offer(w, lifetime="5")),
    "a lifetime that is no number": (ValueError, "more than 0 seconds, not nan", lambda w: offer(w, lifetime=math.nan)),
    "once as a text": (TypeError, "once must be a bool", lambda w: offer(w, once="False")),
    "an offer of no text": (TypeError, "the text of an offer must be a str", lambda w: untyped.Offered(None)),
}


@pytest.mark.parametrize(
    "argument", ["listen", "allow", "names", "security", "secret_file", "tls_cert", "tls_key", "tls_ca", "tls_peers"]
)
def test_an_empty_argument_about_security_does_not_open_an_engine_to_everybody(argument: str) -> None:
    empties: list[Any] = ["", []] if argument in ("listen", "allow", "names", "tls_peers") else [""]
    for empty in empties:
        with pytest.raises(ValueError, match=f"{argument} is empty"):
            untyped.Engine(**{argument: empty})


def foreign(world: Any) -> Any:
    return world.mine.astype(world.mine.dtype.newbyteorder())


def both(world: Any, tokens: Any, **arguments: Any) -> Any:
    return plan(world.here.blocks([1]), world.there.blocks([1]), tokens, **arguments)


def offer(world: Any, **arguments: Any) -> Any:
    return world.far.offer(world.there.blocks([1]), **arguments)


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_an_argument_is_named(world: Any, what: str) -> None:
    kind, text, call = WRONG[what]
    with pytest.raises(kind, match=text):
        call(world)


def test_an_offer_without_an_end_may_say_so(world: Any) -> None:
    offer(world, lifetime=math.inf).close()


def test_what_belongs_to_a_process_says_so_when_it_is_pickled_or_copied(world: Any) -> None:
    transfer = world.peer.write(world.mine, world.region)
    for thing in (world.near, world.peer, world.offer, world.plan, world.region, transfer):
        for call in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="belongs to its process"):
                call(thing)
    assert transfer.result(LIMIT) == world.mine.nbytes


def test_an_offered_is_the_same_in_another_process(world: Any) -> None:
    offered = pickle.loads(pickle.dumps(Offered(world.offer.json())))
    made = plan(world.here.blocks([1]), offered, 16)
    assert world.near.open(offered).write(made).result(LIMIT) == made.bytes


def test_a_region_that_is_closed_is_not_described(world: Any) -> None:
    region = world.near.register(bytearray(64))
    region.close()
    for part in (region, region[:8]):
        with pytest.raises(ValueError, match="already closed"):
            world.near.describe(part)


@pytest.mark.parametrize("name", [":", "a b:1", "127.0.0.1:99999"])
def test_a_name_that_is_none_is_no_rejected_range(world: Any, name: str) -> None:
    with pytest.raises(PeerUnreachable, match=f"^{name}: open: segment: name"):
        world.near.open(name)


def test_a_name_is_shown_in_a_short_line_and_kept_as_it_is(world: Any) -> None:
    for name, shown in (("a\n\x1b[31m\u202eb", r"a\n\x1b[31m\u202eb: open"), ("a" * 1000, "a" * 300 + "...: open")):
        with pytest.raises(PeerUnreachable) as caught:
            world.near.open(name)
        assert str(caught.value).startswith(shown)
        assert caught.value.who == name


def test_a_url_as_a_name_is_shown_without_its_password(world: Any) -> None:
    with pytest.raises(PeerUnreachable, match=r"^http://127\.0\.0\.1:1: .* is a URL") as caught:
        world.near.open("http://me:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)


def test_a_text_that_cannot_be_encoded_is_not_repeated(world: Any) -> None:
    for secret in ("secret\0", "secret\ud800"):
        for arguments in ({"settings": {"MC_REDIS_PASSWORD": secret}}, {"metadata": f"redis://:{secret}@127.0.0.1"}):
            with pytest.raises(ValueError, match=r"(MC_REDIS_PASSWORD|metadata) must not have a") as caught:
                untyped.Engine(**arguments)
            assert "secret" not in str(caught.value)


def test_a_message_that_is_too_long_is_no_rejected_range(world: Any) -> None:
    with pytest.raises(kvferry.TransferError, match="over the limit") as caught:
        world.peer.send(bytes(2 << 20)).result(LIMIT)
    assert not isinstance(caught.value, RangeRejected)


def test_a_plan_to_a_peer_that_is_not_there_says_so(world: Any) -> None:
    with pytest.raises(PeerUnreachable, match="refused"):
        world.plan.write(world.near, "127.0.0.1:1")


def test_a_plan_of_an_engine_that_is_closed_says_so(world: Any) -> None:
    engine = Engine()
    engine.close()
    with pytest.raises(EngineClosed):
        world.plan.write(engine, world.far.name)


def test_threads_that_write_when_the_engine_is_closed_get_its_end(world: Any) -> None:
    engine = Engine()
    peer, ends, begun = engine.open(world.far.name), [], threading.Barrier(5)

    def work() -> None:
        peer.write(world.mine, world.region).result(LIMIT)
        begun.wait(LIMIT)
        try:
            while True:
                peer.write(world.mine, world.region).result(LIMIT)
        except kvferry.Error as e:
            ends.append(type(e))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(LIMIT)
    engine.close()
    for thread in threads:
        thread.join(LIMIT)
    assert ends == [EngineClosed] * 4


def test_a_forked_child_gets_an_error_from_what_its_parent_has_under_way(path: str) -> None:
    done = run_python(
        """
import asyncio, socket, kvferry, numpy as np
from kvferry import Layout, plan
engine, other = kvferry.Engine(), kvferry.Engine()
array = np.zeros((4, 16, 2, 8), np.float16)
layout = Layout(array, "block token head dim")
region = other.register(array)
made = plan(layout.blocks([1]), layout.blocks([2]), 16)
silent = socket.create_server(("127.0.0.1", 0))  # it takes connections and answers nothing
waiting = engine.send("127.0.0.1:%d" % silent.getsockname()[1], b"message")
messages = engine.messages()

async def next_message():
    await messages.__anext__()

def check():
    calls = (
        lambda: waiting.progress,
        lambda: waiting.cancel(),
        lambda: waiting.result(1),
        lambda: asyncio.run(next_message()),
        lambda: made.write(engine, other.name),
        lambda: engine.receive(0),
    )
    for number, call in enumerate(calls):
        try:
            print(number, call())
        except kvferry.LibraryError as e:
            assert "fork" in str(e), e

print(child(check))
assert not waiting.done()
engine.close()
other.close()
"""
    )
    assert done.stdout == "0\n", done.stdout + done.stderr
