"""Transfers whose ranges are named by arrays, and by pages of several pools."""

from __future__ import annotations

import array
import ctypes
import random
import textwrap
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake.engine import TransferEngine
from support.ids import shown
from support.inprocess import Node, run_python

SIZE = 1 << 20
NOBODY = "127.0.0.1:1"
FORMS = ("sync_write", "sync_read", "async_write", "async_read")


@pytest.fixture(autouse=True)
def contents(near: Node, far: Node) -> None:
    near.put(random.Random(1).randbytes(SIZE))
    far.put(random.Random(2).randbytes(SIZE))


def move(node: Node, form: str, *arguments: Any) -> int:
    """Call batch_transfer_*_arrays of that form, and wait for it."""
    code: int = getattr(node.engine, f"batch_transfer_{form}_arrays")(*arguments)
    if form.startswith("async"):
        assert code > 0
        return node.engine.get_batch_transfer_status([code])
    return code


def ctypes_array(numbers: list[int]) -> Any:
    return (ctypes.c_uint64 * len(numbers))(*numbers)


KINDS = {
    "uint64": lambda n: np.array(n, dtype=np.uint64),
    "int64": lambda n: np.array(n, dtype=np.int64),
    "read only": lambda n: memoryview(np.array(n, dtype=np.uint64)).toreadonly(),
    "array.array Q": lambda n: array.array("Q", n),
    "array.array q": lambda n: array.array("q", n),
    "array.array L": lambda n: array.array("L", n),
    "ctypes": ctypes_array,
    "memoryview": lambda n: memoryview(array.array("Q", n)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_an_array_of_any_kind_names_ranges(near: Node, far: Node, form: str, kind: str) -> None:
    make = KINDS[kind]
    spans = [(0, 5000, 100), (8192, 0, 4096), (70_001, 600_001, 65_537)]
    write = form.endswith("write")
    wanted = [near.get(n, a) if write else far.get(n, b) for a, b, n in spans]
    columns = [near.address + s[0] for s in spans], [far.address + s[1] for s in spans], [s[2] for s in spans]
    assert move(near, form, far.name, *map(make, columns)) == 0
    assert [near.get(n, a) for a, _, n in spans] == [far.get(n, b) for _, b, n in spans] == wanted


@pytest.mark.parametrize("form", FORMS)
def test_arrays_without_items_are_done(near: Node, far: Node, form: str) -> None:
    none = np.array([], dtype=np.int64)
    assert move(near, form, far.name, none, none, none) == 0


def test_an_array_may_be_changed_once_an_asynchronous_call_has_returned(near: Node, far: Node) -> None:
    local, remote = np.array([near.address], dtype=np.uint64), np.array([far.address], dtype=np.uint64)
    length = np.array([SIZE], dtype=np.uint64)
    batch = near.engine.batch_transfer_async_write_arrays(far.name, local, remote, length)
    local[0] = remote[0] = length[0] = 1
    assert near.engine.get_batch_transfer_status([batch]) == 0
    assert far.get(SIZE) == near.get(SIZE)


def test_hints_of_any_text_are_taken(near: Node, far: Node) -> None:
    local, remote, length = (np.array([n], dtype=np.uint64) for n in (near.address, far.address, 8))
    assert near.engine.batch_transfer_sync_write_arrays(far.name, local, remote, length, "x", nic_hint="mlx5_0") == 0
    numbers = np.array([0], dtype=np.uint64)
    fields = np.array([[near.address, 8, far.address, 8, 8]], dtype=np.uint64)
    assert near.engine.batch_transfer_sync_read_pages(far.name, numbers, numbers, fields, nic_hint="x") == 0


GOOD = np.array([8], dtype=np.uint64)
NO_INTEGERS = "must hold 8-byte integers (uint64/int64)"
BAD_ARRAYS: list[tuple[Any, type[Exception], str]] = [
    (np.array([8], dtype=np.uint32), TypeError, NO_INTEGERS),
    (np.array([8], dtype=np.int32), TypeError, NO_INTEGERS),
    (np.array([8.0]), TypeError, NO_INTEGERS),
    (np.array([True]), TypeError, NO_INTEGERS),
    (np.array([8], dtype=">u8"), TypeError, NO_INTEGERS),
    (b"12345678", TypeError, NO_INTEGERS),
    (np.array([8, 8, 8], dtype=np.uint64)[::2], TypeError, "must be contiguous"),
    (np.array([8, 8], dtype=np.int64)[::-1], TypeError, "must be contiguous"),
    (np.array([[8]], dtype=np.uint64), TypeError, "must be a one-dimensional array"),
    (np.uint64(8), TypeError, "must be a one-dimensional array"),
    ([8], TypeError, "must be an array with a buffer, not list"),
    (None, TypeError, "must be an array with a buffer, not NoneType"),
    (np.array([-8], dtype=np.int64), ValueError, "must not contain negative values"),
]


def raises(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, check=lambda e: str(e) == text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad,error,text", BAD_ARRAYS, ids=lambda value: str(value)[:30])
def test_an_argument_that_is_no_array_of_integers_is_an_error_that_names_it(
    near: Node, form: str, bad: Any, error: type[Exception], text: str
) -> None:
    call = getattr(near.engine, f"batch_transfer_{form}_arrays")
    for place, name in enumerate(("buffers", "peer_buffer_addresses", "lengths")):
        three: list[Any] = [GOOD] * 3
        three[place] = bad
        with raises(error, f"{name} {text}"):
            call(NOBODY, *three)


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_different_lengths_are_an_error(near: Node, form: str) -> None:
    two = np.array([8, 8], dtype=np.uint64)
    for three in ((two, GOOD, GOOD), (GOOD, two, GOOD), (GOOD, GOOD, two)):
        with raises(ValueError, "buffers, peer_buffer_addresses and lengths must have the same length"):
            getattr(near.engine, f"batch_transfer_{form}_arrays")(NOBODY, *three)


def test_a_failure_of_arrays_is_reported_as_that_of_lists(near: Node, far: Node) -> None:
    outside = [np.array([n], dtype=np.uint64) for n in (near.address, 4096, 8)]
    for form in FORMS:
        assert move(near, form, far.name, *outside) == -1
    assert near.engine.batch_transfer_sync_write_arrays(NOBODY, *outside) == -1
    assert near.engine.batch_transfer_async_write_arrays(NOBODY, *outside) == 0


def test_arrays_and_pages_need_no_numpy(near: Node, far: Node) -> None:
    """sys.modules["numpy"] = None makes every import of it fail."""
    program = """
        sys.modules["numpy"] = None
        import array, ctypes
        from support.inprocess import Node
        near, far = Node(), Node()
        near.put(bytes(range(1, 129)))
        three = [array.array("Q", [n]) for n in (near.address, far.address, 64)]
        assert near.engine.batch_transfer_sync_write_arrays(far.name, *three) == 0
        fields = (ctypes.c_uint64 * 5 * 1)((near.address, 32, far.address, 64, 32))
        pages = array.array("q", [2, 3]), array.array("q", [5, 4])
        assert near.engine.batch_transfer_sync_write_pages(far.name, *pages, fields) == 0
        assert far.get(64) == near.get(64)
        assert far.get(32, 5 * 64) == near.get(32, 64) and far.get(32, 4 * 64) == near.get(32, 96)
        """
    done = run_python(textwrap.dedent(program))
    assert done.returncode == 0, done.stderr


# Pages


def page_fields(*rows: tuple[int, ...]) -> Any:
    return np.array(rows, dtype=np.uint64).reshape(-1, 5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pages_arrive_where_their_numbers_say_and_nowhere_else(near: Node, far: Node, data: st.DataObject) -> None:
    """Rows are pools of 64 KiB each, with pages as large as their stride or smaller."""
    pools = data.draw(st.lists(st.tuples(st.integers(1, 1024), st.integers(1, 1024)), min_size=1, max_size=8))
    count = data.draw(st.integers(1, 64))
    local = data.draw(st.permutations(range(64)))[:count]
    remote = data.draw(st.permutations(range(64)))[:count]
    write, limit = data.draw(st.booleans()), data.draw(st.sampled_from((0, 1, 7, 10_000)))
    signed = data.draw(st.booleans())
    rows = [
        (near.address + (i << 16), a, far.address + (i << 16), b, data.draw(st.integers(1, min(a, b))))
        for i, (a, b) in enumerate(pools)
    ]
    near.put(random.Random(count).randbytes(SIZE))
    source, target = (near, far) if write else (far, near)
    model = bytearray(target.get(SIZE))
    for i, (_, a, _, b, length) in enumerate(rows):
        for here, there in zip(local, remote):
            ours, theirs = (i << 16) + here * a, (i << 16) + there * b
            at, whence = (theirs, ours) if write else (ours, theirs)
            model[at : at + length] = source.get(length, whence)
    numbers: Any = [np.array(n, dtype=np.int64 if signed else np.uint64) for n in (local, remote)]
    engine = near.engine
    call: Any = engine.batch_transfer_sync_write_pages if write else engine.batch_transfer_sync_read_pages
    assert call(far.name, *numbers, page_fields(*rows), limit) == 0
    assert target.get(SIZE) == model


PAGES = np.array([1, 2], dtype=np.uint64)
FIELDS = page_fields((8, 8, 8, 8, 8))
BAD_ROW = "fields rows need a positive length and non-negative strides"
BAD_PAGES: list[tuple[Any, Any, Any, type[Exception], str]] = [
    (PAGES, PAGES[:1], FIELDS, ValueError, "src_pages and dst_pages must have the same length"),
    (PAGES, PAGES, FIELDS[0], TypeError, "fields must be a [rows, 5] array"),
    (PAGES, PAGES, FIELDS[:, :4], TypeError, "fields must be a [rows, 5] array"),
    (PAGES, PAGES, FIELDS.reshape(1, 1, 5), TypeError, "fields must be a [rows, 5] array"),
    (PAGES, PAGES, FIELDS.astype(float), TypeError, f"fields {NO_INTEGERS}"),
    (PAGES, PAGES, np.asfortranarray(np.ones((2, 5), dtype=np.int64)), TypeError, "fields must be C-contiguous"),
    (PAGES, PAGES, [[8, 8, 8, 8, 8]], TypeError, "fields must be an array with a buffer, not list"),
    ([1, 2], PAGES, FIELDS, TypeError, "src_pages must be an array with a buffer, not list"),
    (PAGES, PAGES.astype(np.uint32), FIELDS, TypeError, f"dst_pages {NO_INTEGERS}"),
    (PAGES, -PAGES.astype(np.int64), FIELDS, ValueError, "dst_pages must not contain negative values"),
    *(
        (PAGES, PAGES, np.array([row], dtype=np.int64), ValueError, BAD_ROW)
        for row in ((8, -8, 8, 8, 8), (8, 8, 8, -8, 8), (8, 8, 8, 8, 0), (8, 8, 8, 8, -1))
    ),
    (PAGES, PAGES, page_fields((8, 1 << 63, 8, 8, 8)), ValueError, BAD_ROW),
    (PAGES[:0], PAGES[:0], page_fields((8, 8, 8, 8, 0)), ValueError, BAD_ROW),
]


@pytest.mark.parametrize("form", ("write", "read"))
@pytest.mark.parametrize("source,destination,fields,error,text", BAD_PAGES, ids=lambda value: str(value)[:30])
def test_arrays_that_describe_no_pages_are_an_error_that_says_why(
    near: Node, form: str, source: Any, destination: Any, fields: Any, error: type[Exception], text: str
) -> None:
    with raises(error, text):
        getattr(near.engine, f"batch_transfer_sync_{form}_pages")(NOBODY, source, destination, fields)


@pytest.mark.parametrize("limit", (-1, 1.0, "1", None, 2**64), ids=shown)
def test_a_batch_size_that_is_none_is_a_type_error(near: Node, limit: Any) -> None:
    with pytest.raises(TypeError):
        near.engine.batch_transfer_sync_write_pages(NOBODY, PAGES, PAGES, FIELDS, limit)


def test_no_pages_or_no_rows_are_done_whoever_the_peer_is(near: Node, fresh_engine: TransferEngine) -> None:
    none = PAGES[:0]
    assert near.engine.batch_transfer_sync_write_pages(NOBODY, none, none, FIELDS) == 0
    assert near.engine.batch_transfer_sync_read_pages(NOBODY, PAGES, PAGES, page_fields()) == 0
    assert fresh_engine.batch_transfer_sync_read_pages(NOBODY, none, none, FIELDS) == -1


@pytest.mark.parametrize("limit", (0, 1))
@pytest.mark.parametrize("wrong", ("outside", "wrapping"))
def test_pages_that_do_not_arrive_are_a_failure(near: Node, far: Node, limit: int, wrong: str) -> None:
    numbers = np.array([0, 2**62], dtype=np.uint64)
    stride = {"outside": 1, "wrapping": 8}[wrong]
    fields = page_fields((near.address, 0, far.address, stride, 8))
    for call in (near.engine.batch_transfer_sync_write_pages, near.engine.batch_transfer_sync_read_pages):
        assert call(far.name, numbers, numbers, fields, limit) == -1
        assert call(NOBODY, numbers[:1], numbers[:1], fields, limit) == -1
