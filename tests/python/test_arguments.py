"""Arguments: addresses, lengths, lists of them, and names. Anything else is a TypeError."""

from __future__ import annotations

import array
import re
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvferry._ffi import u64_array
from mooncake.engine import TransferEngine, TransferNotify
from support.ids import shown
from support.inprocess import Node

U64_MAX = 2**64 - 1


class Index:
    """An integer of another library."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


numbers = st.lists(st.integers(0, U64_MAX))


@given(numbers)
def test_any_sequence_of_integers_is_taken_as_it_is(values: list[int]) -> None:
    made: Any
    for made in (
        values,
        tuple(values),
        array.array("Q", values),
        np.array(values, dtype=np.uint64),
        np.repeat(np.array(values, dtype=np.uint64), 2)[::2],
        [np.uint64(v) for v in values],
        [Index(v) for v in values],
        bytes(v % 256 for v in values),
        dict.fromkeys(values).keys(),
    ):
        wanted = list(made) if isinstance(made, bytes) or len(made) != len(values) else values
        assert list(u64_array(made, "values").items()) == wanted
    signed = np.array([v >> 1 for v in values], dtype=np.int64)
    assert list(u64_array(signed, "values").items()) == [v >> 1 for v in values]


@given(st.integers(0, 100), st.integers(1, 1 << 57))
def test_a_range_is_a_sequence(count: int, step: int) -> None:
    values = range(0, count * step, step)
    assert list(u64_array(values, "values").items()) == list(values)


def test_an_array_of_64_bit_integers_is_not_copied() -> None:
    for dtype in (np.uint64, np.int64):
        numpy = np.arange(8, dtype=dtype)
        assert u64_array(numpy, "values").address == numpy.ctypes.data
    for typecode in "QqLl":
        standard = array.array(typecode, range(8))
        assert u64_array(standard, "values").address == standard.buffer_info()[0]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_signed_integers_are_taken_when_none_is_negative(values: list[int]) -> None:
    made = np.array(values, dtype=np.int64)
    if min(values) < 0:
        with pytest.raises(TypeError):
            u64_array(made, "values")
    else:
        assert list(u64_array(made, "values").items()) == values


def test_an_array_that_cannot_be_written_is_taken() -> None:
    values = np.arange(8, dtype=np.uint64)
    values.setflags(write=False)
    assert list(u64_array(values, "values").items()) == list(range(8))
    assert list(u64_array(memoryview(values.tobytes()).cast("Q"), "values").items()) == list(range(8))


def test_an_array_with_gaps_or_backwards_is_taken_in_its_order() -> None:
    for dtype in (np.uint64, np.int64):
        values = np.arange(8, dtype=dtype)
        assert list(u64_array(values[::3], "values").items()) == [0, 3, 6]
        assert list(u64_array(values[::-1], "values").items()) == list(range(7, -1, -1))


NO_ADDRESSES = [-1, U64_MAX + 1, 10**30, 1.0, None, "1", b"1", [1], np.float64(1), float("nan"), Index(-1)]
NO_LISTS: list[Any] = [
    *([1, bad] for bad in NO_ADDRESSES),
    None,
    7,
    "12",
    [[1, 2]],
    np.array([1.0]),
    np.array([-1]),
    np.ones((2, 2), dtype=np.uint64),
    np.array(["a"]),
    np.array([1, None]),
    object(),
]


@pytest.mark.parametrize("bad", NO_ADDRESSES, ids=shown)
@pytest.mark.parametrize("place", range(3))
def test_a_number_that_is_no_address_is_a_type_error(near: Node, far: Node, bad: Any, place: int) -> None:
    one: list[Any] = [near.address, far.address, 1]
    one[place] = bad
    engine = near.engine
    for call in (engine.transfer_sync_write, engine.transfer_sync_read, engine.transfer_submit_write):
        with pytest.raises(TypeError):
            call(far.name, *one)
    local, remote, length = one
    with pytest.raises(TypeError):
        engine.transfer_sync(far.name, local, remote, length, 1)


@pytest.mark.parametrize("bad", NO_ADDRESSES, ids=shown)
def test_no_other_call_takes_it_either(near: Node, bad: Any) -> None:
    engine = near.engine
    for call, arguments in (
        (engine.register_memory, (bad, 1)),
        (engine.register_memory, (near.address, bad)),
        (engine.unregister_memory, (bad,)),
        (engine.allocate_managed_buffer, (bad,)),
        (engine.free_managed_buffer, (bad, 1)),
        (engine.free_managed_buffer, (near.address, bad)),
        (engine.read_bytes_from_buffer, (bad, 1)),
        (engine.read_bytes_from_buffer, (near.address, bad)),
        (engine.write_bytes_to_buffer, (bad, b"x", 1)),
        (engine.write_bytes_to_buffer, (near.address, b"x", bad)),
        (engine.transfer_check_status, (bad,)),
        (engine.get_batch_transfer_status, ([bad],)),
    ):
        with pytest.raises(TypeError):
            call(*arguments)


@pytest.mark.parametrize("bad", NO_LISTS, ids=shown)
@pytest.mark.parametrize("place", range(3))
def test_a_list_with_anything_else_in_it_is_a_type_error(near: Node, far: Node, bad: Any, place: int) -> None:
    many: list[Any] = [[near.address], [far.address], [1]]
    many[place] = bad
    engine = near.engine
    for call in (
        engine.batch_transfer_sync_write,
        engine.batch_transfer_sync_read,
        engine.batch_transfer_async_write,
        engine.batch_transfer_async_read,
    ):
        with pytest.raises(TypeError):
            call(far.name, *many)


@pytest.mark.parametrize("bad", NO_LISTS, ids=shown)
def test_nor_do_other_calls_take_such_a_list(near: Node, bad: Any) -> None:
    for call, arguments in (
        (near.engine.batch_register_memory, (bad, [1])),
        (near.engine.batch_register_memory, ([near.address], bad)),
        (near.engine.batch_unregister_memory, (bad,)),
        (near.engine.get_batch_transfer_status, (bad,)),
    ):
        with pytest.raises(TypeError):
            call(*arguments)


@pytest.mark.parametrize("bad", [None, 1, b"127.0.0.1:1"], ids=shown)
def test_a_name_that_is_no_string_is_a_type_error(near: Node, bad: Any) -> None:
    engine = near.engine
    for call, arguments in (
        (engine.transfer_sync_write, (bad, near.address, near.address, 1)),
        (engine.batch_transfer_async_read, (bad, [near.address], [near.address], [1])),
        (engine.get_first_buffer_address, (bad,)),
        (engine.send_probe, (bad,)),
        (engine.register_memory, (near.address, 1, bad)),
        (TransferEngine().initialize, (bad, "P2PHANDSHAKE", "tcp", "")),
        (TransferEngine().initialize, ("127.0.0.1", bad, "tcp", "")),
        (TransferEngine().initialize, ("127.0.0.1", "P2PHANDSHAKE", bad, "")),
    ):
        with pytest.raises(TypeError):
            call(*arguments)


def test_a_name_with_a_nul_or_that_is_no_text_is_an_unknown_name(near: Node) -> None:
    for name in ("127.0.0.1:1\0", "\ud800"):
        assert near.engine.transfer_sync_write(name, near.address, near.address, 1) < 0
        assert near.engine.transfer_submit_write(name, near.address, near.address, 1) == 0
        assert near.engine.get_first_buffer_address(name) == 0
        assert near.engine.send_probe(name) == -200
        assert near.engine.register_memory(near.address, 1, name) < 0
        assert near.engine.batch_register_memory([near.address], [1], name) < 0
        assert near.engine.write_bytes_to_buffer(near.address, name, 1) == (0 if "\0" in name else -1)
        assert TransferEngine().initialize(name, "P2PHANDSHAKE", "tcp", "") == -1


def test_a_message_with_a_nul_is_refused(near: Node, far: Node) -> None:
    message = TransferNotify("a\0b", "")
    assert near.engine.transfer_sync(far.name, near.address, far.address, 1, 1, message) < 0
    assert far.engine.get_notifies() == []


@pytest.mark.parametrize("part", ("name", "text"))
def test_a_message_with_a_lone_surrogate_is_refused_by_an_error_that_names_the_part(
    near: Node, far: Node, part: str, logged: Callable[[], str]
) -> None:
    message = TransferNotify("a", "b")
    setattr(message, "msg" if part == "text" else part, "KV \ud800")
    assert near.engine.transfer_sync(far.name, near.address, far.address, 1, 1, message) < 0
    assert f"the notification {part} must not have a lone surrogate: '\\ud800' is its character 3" in logged()
    assert far.engine.get_notifies() == []


def test_a_source_with_a_lone_surrogate_is_refused_by_an_error_that_names_it(
    near: Node, logged: Callable[[], str]
) -> None:
    near.put(b"as it was")
    for source in ("KV \ud800", "KV \udc80"):
        assert near.engine.write_bytes_to_buffer(near.address, source, 4) == -1
        assert f"src_ptr must not have a lone surrogate: {source[3]!r} is its character 3" in logged()
    assert near.engine.read_bytes_from_buffer(near.address, 9) == b"as it was"


@pytest.mark.parametrize("bad", [0, "text", ("name", "text"), b""], ids=shown)
def test_a_message_that_is_no_notification_is_a_type_error(near: Node, far: Node, bad: Any) -> None:
    calls: Any = (
        (near.engine.transfer_sync, (near.address, far.address, 1)),
        (near.engine.batch_transfer_sync, ([near.address], [far.address], [1])),
    )
    for call, arguments in calls:
        with pytest.raises(TypeError, match="notify must be a TransferNotify, not "):
            call(far.name, *arguments, 1, bad)
    assert far.engine.get_notifies() == []


def test_an_opcode_is_read_or_write(near: Node, far: Node) -> None:
    for bad in (2, -1, 2**32, 2**32 + 1):
        assert near.engine.transfer_sync(far.name, near.address, far.address, 1, bad) < 0
        assert near.engine.batch_transfer_async(far.name, [near.address], [far.address], [1], bad) == 0
    with pytest.raises(TypeError):
        near.engine.transfer_sync(far.name, near.address, far.address, 1, "write")  # type: ignore[arg-type]


def test_every_documented_name_works_as_a_keyword(near: Node, far: Node) -> None:
    one = {"target_hostname": far.name, "buffer": near.address, "peer_buffer_address": far.address, "length": 1}
    assert near.engine.transfer_sync_write(**one, transport_hint="tcp", nic_hint="any") == 0  # type: ignore[arg-type]
    assert near.engine.transfer_sync(**one, opcode=1, notify=None, transport_hint="") == 0  # type: ignore[arg-type]
    many = {"buffers": [near.address], "peer_buffer_addresses": [far.address], "lengths": [1]}
    batch = near.engine.batch_transfer_async(target_hostname=far.name, **many, opcode=0, transport_hint="x")  # type: ignore[arg-type]
    assert near.engine.get_batch_transfer_status(batch_ids=[batch]) == 0  # type: ignore[call-arg]


def test_the_reason_of_a_refusal_is_logged(near: Node, logged: Callable[[], str]) -> None:
    near.engine.batch_transfer_sync_write("127.0.0.1:1", [1, 2], [1], [1])
    assert re.search("2 buffers, 1 peer addresses and 1 lengths do not match", logged())
