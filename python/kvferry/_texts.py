"""Descriptions that the native library gives as JSON: of a peer, and of the engines that a metadata store knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_uint64, create_string_buffer
from typing import Any, Callable, TypedDict, cast

from kvferry._bindings import KVFERRY_ERR_TIMED_OUT, Functions
from kvferry._calls import background_call
from kvferry._ffi import c_string, last_error
from kvferry._library import load


class DescribedBuffer(TypedDict):
    """Registered memory of a peer."""

    address: int
    length: int
    location: str
    access: str  # read-write, read or write


class Description(TypedDict):
    """What the descriptor of a segment says."""

    name: str
    kind: str  # kvferry or mooncake
    address: str
    data_address: str
    identity: str
    proto_version: int
    tls: bool
    same_host_socket: bool
    buffers: list[DescribedBuffer]
    truncated: bool


class Member(TypedDict, total=False):
    """An engine as a metadata store knows it. The header describes kvferry_start_members."""

    name: str
    state: str  # reachable, stale, unclear or missing
    problem: str
    kind: str
    address: str
    data_address: str
    since: str
    changed: str
    identity: str
    buffers: int
    bytes: int
    truncated: bool


class DescribeError(RuntimeError):
    """A description cannot be had; the text says why."""


def describe(functions: Functions, engine: int, name: str, timeout: float) -> Description:
    """What a peer offers now. DescribeError when it does not answer within timeout, in seconds."""
    arguments = engine, c_string(name, "segment name")
    return cast("Description", _text(functions, functions.kvferry_start_describe, arguments, timeout))


def members(store: str, name: str, timeout: float) -> list[Member]:
    """The engines that a metadata store knows, or the one of that name where name is not "".

    timeout is for all of them, in seconds. DescribeError when the store cannot be read.
    """
    functions = load()
    asking = max(0.0, timeout - 1)  # what has no answer by then is in the text, which needs a moment
    arguments = c_string(store, "metadata"), c_string(name, "name"), int(asking * 1000)
    return cast("list[Member]", _text(functions, functions.kvferry_start_members, arguments, timeout))


def forget(store: str, name: str, force: bool, timeout: float) -> None:
    """Remove what a metadata store has of an engine. DescribeError when it lives, unless force is set, and when the
    store cannot be changed."""
    functions = load()
    arguments = c_string(store, "metadata"), c_string(name, "name"), int(force)
    _call(functions, functions.kvferry_start_forget, arguments, timeout)


def _text(functions: Functions, start: Callable[..., int | None], arguments: tuple[Any, ...], timeout: float) -> Any:
    with _freed(functions, _call(functions, start, arguments, timeout)) as handle:
        length = functions.kvferry_text(handle, None, 0)
        text = create_string_buffer(length + 1)
        functions.kvferry_text(handle, text, len(text))
        return json.loads(text.value)


def _call(functions: Functions, start: Callable[..., int | None], arguments: tuple[Any, ...], timeout: float) -> int:
    result = c_uint64()
    code = background_call(functions, start, arguments, timeout, result)
    if code == KVFERRY_ERR_TIMED_OUT:
        raise DescribeError(f"no answer within {timeout:g} s")
    if code != 0:
        raise DescribeError(last_error(functions))
    return result.value


@contextmanager
def _freed(functions: Functions, handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        functions.kvferry_text_free(handle)
