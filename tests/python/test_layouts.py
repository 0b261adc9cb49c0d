"""Layouts: what they say of tensors, and their text."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from kvferry import Layout, plan
from support.inprocess import run_python


class Torch:
    """A tensor as PyTorch's are, of 2-byte elements."""

    def __init__(self, address: int, *shape: int) -> None:
        self.shape = shape
        self.dtype = "torch.bfloat16"
        self._address = address

    def data_ptr(self) -> int:
        return self._address

    def element_size(self) -> int:
        return 2

    def stride(self) -> tuple[int, ...]:
        return tuple(int(np.prod(self.shape[i + 1 :], dtype=int)) for i in range(len(self.shape)))


def numbers(layout: Layout) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(layout.json())
    return found


def test_a_list_of_tensors_with_k_and_v_is_a_layer_each() -> None:
    caches = [Torch(address, 2, 100, 16, 4, 128) for address in (1 << 20, 1 << 26, 1 << 24)]
    assert numbers(Layout(caches, "kv block token head dim", layers=(8, 32), heads=(4, 8))) == {
        "kvferry_layout": 1,
        "dtype": "bfloat16",
        "element_size": 2,
        "blocks": 100,
        "block_tokens": 16,
        "layers": 32,
        "kv": 2,
        "dim": 128,
        "heads": [4, 4, 8],
        "tensors": [
            {
                "layer": 8,
                "addresses": [1 << 20, 1 << 26, 1 << 24],
                "kv": [0, 2],
                "dims": [0, 128],
                "strides": [100 * 16 * 1024, 16 * 1024, 1024, 256, 2],
            }
        ],
    }


def test_a_layer_axis_of_one_array_is_an_address_for_each_layer() -> None:
    cache = np.zeros((10, 3, 2, 4, 8, 5), np.float16)
    found = numbers(Layout(cache, "block layer kv head token dim"))
    address = cache.ctypes.data
    assert found["tensors"][0]["addresses"] == [address + i * cache.strides[1] for i in range(3)]
    assert found["tensors"][0]["strides"] == [cache.strides[i] for i in (2, 0, 4, 3, 5)]
    assert (found["dtype"], found["layers"], found["heads"]) == ("float16", 3, [0, 4, 4])


def test_a_view_of_an_array_has_the_strides_of_the_array() -> None:
    cache = np.zeros((10, 8, 4, 12), np.uint8)
    found = numbers(Layout(cache[:, :, :, :5], "block token head dim", kv="v"))
    assert found["tensors"][0]["strides"] == [0, *cache.strides]
    assert (found["kv"], found["tensors"][0]["kv"]) == (2, [1, 1])


def test_slots_are_blocks_of_one_token() -> None:
    pools = [np.zeros((1000, 4, 8), np.float16) for _ in range(2)]
    layout = Layout(pools, "slot head dim", kv="k") + Layout([p.copy() for p in pools], "slot head dim", kv="v")
    found = numbers(layout)
    assert (found["blocks"], found["block_tokens"], found["kv"], len(found["tensors"])) == (1000, 1, 2, 2)


def test_parts_of_a_head_that_are_apart_become_one_layout() -> None:
    nope, rope = np.zeros((10, 128, 1, 512), np.float16), np.zeros((10, 128, 1, 64), np.float16)
    layout = Layout(nope, "block token head dim", dims=(0, 576)) + Layout(rope, "block token head dim", dims=(512, 576))
    found = numbers(layout)
    assert (found["kv"], found["dim"], found["heads"]) == (1, 576, [0, 1, 1])
    assert [t["dims"] for t in found["tensors"]] == [[0, 512], [512, 64]]
    fused = Layout(np.zeros((80, 16, 576), np.float16), "block token dim")
    assert plan(layout.blocks([3]), fused.blocks(range(8)), 128).bytes == 128 * 576 * 2


def test_a_layout_is_the_same_after_its_way_as_text_and_as_pickle() -> None:
    layout = Layout(np.zeros((2, 10, 16, 4, 8), np.float32), "kv block token head dim", heads=(4, 8))
    for other in (Layout.from_json(layout.json()), pickle.loads(pickle.dumps(layout)), eval(repr(layout))):
        assert other == layout
        assert hash(other) == hash(layout)
    assert layout != Layout(np.zeros((2, 10, 16, 4, 8), np.float32), "kv block token head dim", heads=(0, 8))


CACHE = np.zeros((2, 10, 16, 4, 8), np.float16)


@pytest.mark.parametrize(
    ("tensors", "axes", "more", "says"),
    [
        ([], "kv block token head dim", {}, "no tensors"),
        (CACHE, "kv block token head", {}, "5 axes needs as many names"),
        (CACHE, "kv block token heads dim", {}, "the names of axes are some of"),
        (CACHE, "kv block token token dim", {}, "each once"),
        (CACHE, "kv block layer head dim", {}, "block and token or else slot"),
        (CACHE, "kv slot token head dim", {}, "block and token or else slot"),
        (CACHE, "kv block token head layer", {}, "have dim"),
        (CACHE, "kv block token head dim", {"kv": "k"}, "these have an axis for both"),
        (CACHE, "layer block token head dim", {"kv": "q"}, 'is "k" or "v"'),
        (CACHE, "layer block token head dim", {"layers": (31, 32)}, "layers: 2 from 31 on are not within 32"),
        (CACHE, "kv block token head dim", {"heads": (5, 8)}, "heads: 4 from 5 on are not within 8"),
        (CACHE, "kv block token head dim", {"heads": (-4, 8)}, "heads must not be negative"),
        ([CACHE, CACHE], "kv block token head dim", {}, "share bytes"),
        ([CACHE, CACHE], "layer block token head dim", {}, "a tensor for each layer"),
        ([CACHE, CACHE[:, :5]], "kv block token head dim", {}, "the same shape"),
        (np.broadcast_to(CACHE[:, :1], CACHE.shape), "kv block token head dim", {}, "axis block has a stride of 0"),
        (CACHE[:, ::-1], "kv block token head dim", {}, "the axis block has a stride of -"),
    ],
)
def test_tensors_that_are_no_layout_are_refused(tensors: Any, axes: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Layout(tensors, axes, **more)


def test_objects_that_are_no_tensors_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="not bytes"):
        Layout(bytes(100), "block token dim")
    for kind in (object, "U7"):
        with pytest.raises(TypeError, match="an array of numbers"):
            Layout(np.zeros((3, 4, 5), kind), "block token dim")


def test_layouts_that_do_not_belong_together_are_not_joined() -> None:
    k = Layout(CACHE, "layer block token head dim", kv="k")
    with pytest.raises(ValueError, match="the same block_tokens, not 16 and 8"):
        k + Layout(np.zeros((2, 10, 8, 4, 8), np.float16), "layer block token head dim", kv="v")
    with pytest.raises(ValueError, match="the same dtype, not float16 and int16"):
        k + Layout(np.zeros((2, 10, 16, 4, 8), np.int16), "layer block token head dim", kv="v")
    with pytest.raises(ValueError, match="both have"):
        k + k


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "null", "\ud800", '{"kvferry_layout": 2}', pytest.param("x" * 2**21, id="long")]
)
def test_text_that_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Layout.from_json(text)


def test_plans_that_cannot_be_are_refused_and_the_error_says_why() -> None:
    layout = Layout(CACHE, "kv block token head dim")
    other = Layout(CACHE.view(np.int16), "kv block token head dim")
    some = Layout(CACHE, "kv block token head dim", heads=(2, 8))
    whole = layout.blocks([1, 2])
    for source, destination, tokens, says in (
        (whole, other.blocks([1, 2]), 32, "elements of type int16 and of type float16"),
        (whole, some.blocks([1, 2]), 32, "number of heads 8 and 4"),
        (whole, layout.blocks([1, 1]), 32, "number 1 is twice"),
        (whole, layout.blocks([1, 10]), 32, "block 10"),
        (layout.slots(range(20)), layout.slots([160] * 20), 20, "slot 160"),
        (whole, layout.blocks([3, 4], first=1), 32, "destination 0: 2 blocks have room for 32 tokens"),
        ([], whole, 32, "0 sources"),
    ):
        with pytest.raises(ValueError, match=says):
            plan(source, destination, tokens)
    for table in ([-1], [2**64], ["1"], [1.5]):
        with pytest.raises(TypeError):
            layout.blocks(table)  # type: ignore[arg-type]


def test_a_type_without_a_name_matches_any() -> None:
    layout = Layout(CACHE, "kv block token head dim")
    other = Layout(CACHE.view(np.int16), "kv block token head dim", dtype="")
    assert plan(layout.blocks([1]), other.blocks([2]), 16).bytes == 16 * 2 * 4 * 8 * 2


def test_a_partial_plan_moves_what_the_sources_have() -> None:
    half = Layout(np.zeros((2, 10, 16, 2, 8), np.float16), "kv block token head dim", heads=(2, 4))
    whole = Layout(CACHE, "kv block token head dim")
    with pytest.raises(ValueError, match="no source has layer 0, K/V 0 to 1, head 0 to 1, dim 0 to 7"):
        plan(half.blocks([1]), whole.blocks([2]), 16)
    assert plan(half.blocks([1]), whole.blocks([2]), 16, partial=True).bytes == 16 * 2 * 2 * 8 * 2
    assert plan(whole.blocks([1]), half.blocks([2]), 16).bytes == 16 * 2 * 2 * 8 * 2


def test_a_layout_can_be_used_in_a_child_that_was_forked_after_it_was_made() -> None:
    done = run_python("""
import os
import numpy as np
from kvferry import Layout, plan
layout = Layout(np.zeros((2, 10, 16, 4, 8), np.float16), "kv block token head dim")
child = os.fork()
if child == 0:
    moved = plan(layout.blocks([1]), layout.blocks([2]), 16).bytes
    os._exit(0 if moved == 16 * 2 * 4 * 8 * 2 else 1)
assert os.waitpid(child, 0)[1] == 0
plan(layout.blocks([1]), layout.blocks([2]), 16)
""")
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_library() -> None:
    done = run_python("""
import kvferry
assert kvferry.Layout and "libtransfer_engine" not in open("/proc/self/maps").read()
""")
    assert done.returncode == 0, done.stderr
