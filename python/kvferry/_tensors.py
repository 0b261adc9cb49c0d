"""What a layout needs to know of a tensor: PyTorch's, NumPy's, or any with __cuda_array_interface__."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple


class Tensor(NamedTuple):
    """Where the elements of a tensor lie."""

    address: int  # of the first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    element_size: int  # bytes
    dtype: str  # name of the element type, as PyTorch and NumPy have it


def tensor(array: Any) -> Tensor:
    """An array as a Tensor. TypeError for an object that says neither where its elements lie nor how."""
    if hasattr(array, "data_ptr"):
        return _torch(array)
    for name in ("__array_interface__", "__cuda_array_interface__"):
        interface = getattr(array, name, None)
        if interface is not None:
            return _interface(array, interface)
    raise TypeError(f"a tensor of PyTorch, a NumPy array or the like is needed, not {type(array).__name__}")


def _torch(array: Any) -> Tensor:
    size = int(array.element_size())
    strides = tuple(int(stride) * size for stride in array.stride())
    return Tensor(int(array.data_ptr()), tuple(array.shape), strides, size, str(array.dtype).rpartition(".")[2])


def _interface(array: Any, interface: dict[str, Any]) -> Tensor:
    shape, kind = tuple(interface["shape"]), str(interface["typestr"])
    if kind[1] not in "biufcV":  # of others the number is not a size in bytes, or the elements are elsewhere
        raise TypeError(f"an array of numbers is needed, not one of {kind}")
    if kind[0] == (">" if sys.byteorder == "little" else "<"):
        raise TypeError(f"an array in the byte order of this machine is needed, not one of {kind}")
    size = int(kind[2:])
    strides = interface.get("strides") or contiguous_strides(shape, size)
    name = str(getattr(getattr(array, "dtype", None), "name", ""))
    return Tensor(int(interface["data"][0]), shape, tuple(strides), size, name)


def contiguous_strides(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """The strides in bytes of a contiguous tensor with elements of so many bytes."""
    strides = []
    for count in reversed(shape):
        strides.append(size)
        size *= count
    return tuple(reversed(strides))
