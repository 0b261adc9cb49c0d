"""The memory of objects: where it is, and what keeps it.

An object has memory if it is a tensor of PyTorch (on a CPU, a GPU or an NPU), has __cuda_array_interface__, the buffer
protocol, or DLPack. Nothing is copied, and no device is called.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from kvferry._tensors import contiguous_strides, tensor


class Buffer(NamedTuple):
    """Contiguous memory."""

    address: int
    nbytes: int
    readonly: bool
    owner: Any  # keeps the memory


def buffer_of(thing: Any) -> Buffer:
    """The memory of an object. TypeError if it has none that can be found, ValueError if it is not contiguous."""
    if hasattr(thing, "data_ptr"):
        return _of_tensor(thing, readonly=False)
    if hasattr(thing, "__cuda_array_interface__"):
        return _of_tensor(thing, readonly=bool(thing.__cuda_array_interface__["data"][1]))
    try:
        view = memoryview(thing)
    except (TypeError, ValueError, BufferError):  # no buffer, or one with elements that Python does not know
        view = None
    if view is not None:
        return _of_view(view, type(thing).__name__)
    if hasattr(thing, "__array_interface__"):
        return _of_tensor(thing, readonly=bool(thing.__array_interface__["data"][1]))
    if hasattr(thing, "__dlpack__"):
        return _of_dlpack(thing)
    raise TypeError(
        f"memory is needed: a tensor, an array, or another object with the buffer protocol, "
        f"__cuda_array_interface__ or __dlpack__, not {type(thing).__name__}"
    )


def _of_tensor(thing: Any, readonly: bool) -> Buffer:
    found = tensor(thing)
    _check_contiguous(found.shape, found.strides, found.element_size, type(thing).__name__)
    return Buffer(found.address, _bytes(found.shape, found.element_size), readonly, thing)


_FIELD_NAME = re.compile(":[^:]*:")  # in the format of a buffer; elsewhere in it an O is a Python object


def _of_view(view: memoryview, kind: str) -> Buffer:
    if "O" in _FIELD_NAME.sub("", view.format):
        raise TypeError(f"this {kind} has Python objects, which are addresses of this process: they cannot be moved")
    if not view.c_contiguous:
        raise ValueError(_not_contiguous(kind, view.shape, view.strides))
    if view.nbytes == 0:
        return Buffer(0, 0, view.readonly, view)
    exported = _Export(view)
    return Buffer(exported.address, view.nbytes, view.readonly, exported)


class _PyBuffer(ctypes.Structure):
    """Py_buffer of CPython."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class _Export:
    """A buffer that its object does not move or resize while this lives. Read-only ones have an address, too."""

    def __init__(self, view: memoryview) -> None:
        self._buffer = _PyBuffer()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(self._buffer), 0)
        self.address: int = self._buffer.buf

    def __del__(self, release: Any = ctypes.pythonapi.PyBuffer_Release) -> None:
        release(ctypes.byref(self._buffer))


class _DLTensor(ctypes.Structure):
    """DLTensor of DLPack's C header, and at the start of a DLManagedTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _of_dlpack(thing: Any) -> Buffer:
    """The memory of an object with DLPack. The capsule keeps it, and gives it back when it is not used any more."""
    capsule = thing.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = _DLTensor.from_address(get(capsule, b"dltensor"))
    size = -(-found.bits * found.lanes // 8)
    shape = tuple(found.shape[: found.ndim])
    if found.strides:
        strides = tuple(stride * size for stride in found.strides[: found.ndim])
        _check_contiguous(shape, strides, size, type(thing).__name__)
    return Buffer((found.data or 0) + found.byte_offset, _bytes(shape, size), False, capsule)


def _bytes(shape: Sequence[int], size: int) -> int:
    for count in shape:
        size *= count
    return size


def _check_contiguous(shape: Sequence[int], strides: Sequence[int], size: int, kind: str) -> None:
    wanted = contiguous_strides(shape, size)
    if 0 not in shape and any(count > 1 and have != want for count, have, want in zip(shape, strides, wanted)):
        raise ValueError(_not_contiguous(kind, shape, strides))


def _not_contiguous(kind: str, shape: Any, strides: Any) -> str:
    return (
        f"this {kind} with the shape {tuple(shape or ())} and strides of {tuple(strides or ())} bytes is not "
        "contiguous: move a contiguous part of it, or describe it by a Layout and move a plan"
    )
