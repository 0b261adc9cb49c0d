"""Layouts: where a process has its part of a KV cache. docs/layouts.md has examples.

A layout is numbers, and keeps no memory. Its text is JSON of at most 1 MiB, for any side channel. The native library
checks it when the layout is made, whoever has sent it.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from kvferry._bindings import KVFERRY_BLOCKS, KVFERRY_SLOTS, Functions, kvferry_place_t
from kvferry._ffi import Integers, U64Array, c_string, integer, last_error, u64, u64_array
from kvferry._library import load
from kvferry._tensors import Tensor, tensor

if TYPE_CHECKING:
    from kvferry._offers import Offered

VERSION = 1  # of the text
AXES = ("layer", "kv", "block", "token", "slot", "head", "dim")
PARTS = {"k": 0, "v": 1}
SAME = ("element_size", "blocks", "block_tokens", "layers", "kv", "heads")  # what the parts of a layout have in common

Part = tuple[int, int]  # the first number, and how many the model has


class Layout:
    """Where a process has its part of a KV cache: in numbered blocks of tokens, in one or several tensors.

    A layout does not change. Any thread may use it. It keeps no tensor alive: the memory is the caller's, who registers
    it with an engine and keeps it while bytes move. Layouts with the same numbers are equal, and can be pickled.
    """

    def __init__(
        self,
        tensors: Any,
        axes: str,
        *,
        layers: Optional[Part] = None,
        heads: Optional[Part] = None,
        dims: Optional[Part] = None,
        kv: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Describe a tensor, or one for each layer in a list, all with the same shape and strides.

        tensors are PyTorch's, NumPy's, or have __cuda_array_interface__. axes names their axes in order, in one string:
        "kv block token head dim", for example.

        - layer: the layers. Without it each tensor is a layer.
        - kv: K, then V. Without it kv says which of them the tensors are, "k" or "v". Without both there is one latent
          vector for both, as in MLA.
        - block and token: the blocks, and the tokens in a block. Or slot: the places of single tokens. That is a block
          of one token.
        - head: the KV heads. Without it there is one.
        - dim: the elements of a head.

        layers, heads and dims say which part of the model this is, where it is not the whole: (the first one, how many
        the model has). dtype is the name of the element type; None takes the tensors', and "" matches any.

        ValueError for axes that do not fit, and for elements that share bytes; TypeError for objects that are no
        tensors.
        """
        items = list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]
        if not items:
            raise ValueError("there are no tensors")
        parsed = [tensor(item) for item in items]
        c_string(axes, "axes")
        if dtype is not None:
            c_string(dtype, "dtype")
        self._set(_describe(parsed, _axes(axes, parsed[0]), layers, heads, dims, kv, dtype))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The layout with that text, which may come from anybody. ValueError says what is wrong with it."""
        layout = cls.__new__(cls)
        layout._handle = _parsed(load(), c_string(text, "the text of a layout"))
        layout._text = text
        return layout

    def _set(self, numbers: dict[str, Any]) -> None:
        self._text = json.dumps(numbers, separators=(",", ":"))
        self._handle = _parsed(load(), self._text.encode())

    def json(self) -> str:
        """The text: JSON in one line."""
        return self._text

    def _numbers(self) -> dict[str, Any]:
        numbers: dict[str, Any] = json.loads(self._text)
        return numbers

    def __add__(self, other: Layout) -> Layout:
        """One layout with the tensors of both: K and V, or parts of a head, that are apart. ValueError where they
        differ in more than that, or have the same elements."""
        if not isinstance(other, Layout):
            return NotImplemented
        mine, theirs = self._numbers(), other._numbers()
        for key in SAME:
            if mine[key] != theirs[key]:
                raise ValueError(f"parts of one layout have the same {key}, not {mine[key]} and {theirs[key]}")
        if mine.get("dtype", "") != theirs.get("dtype", ""):
            raise ValueError(f"parts of one layout have the same dtype, not {mine['dtype']} and {theirs['dtype']}")
        joined = Layout.__new__(Layout)
        joined._set({**mine, "dim": max(mine["dim"], theirs["dim"]), "tensors": mine["tensors"] + theirs["tensors"]})
        return joined

    def blocks(self, table: Integers, first: int = 0) -> Place:
        """Where tokens lie, by a table of block numbers: position p is token p % block_tokens of block
        table[p // block_tokens]. first is the position of the first token that moves."""
        return Place(self, u64_array(table, "table"), u64(first, "first"), KVFERRY_BLOCKS)

    def slots(self, table: Integers, first: int = 0) -> Place:
        """Where tokens lie, by a table with a slot for each token. Slot s is token s % block_tokens of block
        s // block_tokens. first is the position in the table of the first token that moves."""
        return Place(self, u64_array(table, "table"), u64(first, "first"), KVFERRY_SLOTS)

    def handle(self, functions: Functions) -> int:
        """The layout's handle in a loaded copy of the library, as long as this object lives."""
        if self._handle.functions is not functions:  # this process was forked after the layout was made
            self._handle = _parsed(functions, self._text.encode())
        return self._handle.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash(json.dumps(self._numbers(), sort_keys=True))

    def __repr__(self) -> str:
        return f"Layout.from_json({self._text!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout.from_json, (self._text,)


class Place(NamedTuple):
    """Where the tokens of a plan lie on one side. Layout.blocks(), Layout.slots() and Offered.place() make it. A table
    that is an array is read when a plan is made."""

    layout: Layout | Offered
    table: U64Array
    first: int
    kind: int

    def entry(self, functions: Functions) -> kvferry_place_t:
        """The place as the library takes it, as long as this object lives."""
        numbers, count = self.table.pointer, self.table.length
        return kvferry_place_t(self.layout.handle(functions), numbers, count, self.first, self.kind)


class Handle:
    """Something that the library has read from a text. ValueError for text that is none."""

    def __init__(
        self,
        functions: Functions,
        parse: Callable[[bytes, int], int | None],
        free: Callable[[int], int],
        text: bytes,
    ) -> None:
        number = parse(text, len(text))
        if not number:
            raise ValueError(last_error(functions))
        self.functions = functions
        self.number = number
        weakref.finalize(self, free, number).atexit = False  # type: ignore[misc]


def _parsed(functions: Functions, text: bytes) -> Handle:
    return Handle(functions, functions.kvferry_layout_parse, functions.kvferry_layout_free, text)


def _axes(names: str, of: Tensor) -> dict[str, tuple[int, int]]:
    """The size and the stride in bytes of each axis of a tensor, by name."""
    words = names.split()
    if len(words) != len(of.shape):
        raise ValueError(f"a tensor with {len(of.shape)} axes needs as many names, not {names!r}")
    if len(set(words)) != len(words) or not set(words) <= set(AXES):
        raise ValueError(f"the names of axes are some of {', '.join(AXES)}, each once, not {names!r}")
    if "dim" not in words or ({"slot"} if "slot" in words else {"block", "token"}) != {
        word for word in words if word in ("block", "token", "slot")
    }:
        raise ValueError(f"the axes of a tensor have dim, and block and token or else slot: {names!r} do not")
    return {word: (of.shape[i], of.strides[i]) for i, word in enumerate(words)}


def _describe(
    tensors: Sequence[Tensor],
    axes: dict[str, tuple[int, int]],
    layers: Optional[Part],
    heads: Optional[Part],
    dims: Optional[Part],
    kv: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """The numbers of a layout, as its text has them."""
    like = tensors[0]
    for other in tensors:
        if other[1:] != like[1:]:
            raise ValueError(f"the tensors of a list have the same shape, strides and type, not {like} and {other}")
    for name, (_, step) in axes.items():
        if step < 0:
            raise ValueError(f"the axis {name} has a stride of {step} bytes: a layout has none that is negative")
    blocks, block_stride = axes.get("slot") or axes["block"]
    tokens, token_stride = axes.get("token", (1, 0))
    if "layer" in axes and len(tensors) > 1:
        raise ValueError("a list has a tensor for each layer: they have no axis of layers")
    count, stride = axes.get("layer", (1, 0))
    addresses = [t.address + i * stride for t in tensors for i in range(count)]
    parts, first_part, kv_count, kv_stride = _parts(axes, kv)
    head_count, head_stride = axes.get("head", (1, 0))
    dim_count, dim_stride = axes["dim"]
    first_layer, layer_count = _part(layers, len(addresses), "layers")
    first_head, heads_of = _part(heads, head_count, "heads")
    first_dim, dims_of = _part(dims, dim_count, "dims")
    return {
        "kvferry_layout": VERSION,
        "dtype": like.dtype if dtype is None else dtype,
        "element_size": like.element_size,
        "blocks": blocks,
        "block_tokens": tokens,
        "layers": layer_count,
        "kv": parts,
        "dim": dims_of,
        "heads": [first_head, head_count, heads_of],
        "tensors": [
            {
                "layer": first_layer,
                "addresses": addresses,
                "kv": [first_part, kv_count],
                "dims": [first_dim, dim_count],
                "strides": [kv_stride, block_stride, token_stride, head_stride, dim_stride],
            }
        ],
    }


def _part(given: Optional[Part], count: int, name: str) -> Part:
    """Which part of the model tensors are that have so many; all of it for None."""
    if given is None:
        return 0, count
    try:
        first, of = given
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a pair: the first one, and how many the model has, not {given!r}") from None
    first, of = integer(first, name), integer(of, name)
    if first < 0 or of < 0:
        raise ValueError(f"{name} must not be negative: {given!r}")
    return first, of


def _parts(axes: dict[str, tuple[int, int]], kv: str | None) -> tuple[int, int, int, int]:
    """How many of K and V the model has, the first one and the number of those in the tensors, and the stride."""
    if "kv" in axes:
        if kv is not None:
            raise ValueError("kv says which of K and V the tensors are: these have an axis for both")
        return 2, 0, *axes["kv"]
    if kv is None:
        return 1, 0, 1, 0
    if kv not in PARTS:
        raise ValueError(f'kv is "k" or "v", not {kv!r}')
    return 2, PARTS[kv], 1, 0
