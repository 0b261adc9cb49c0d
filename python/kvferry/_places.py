"""Memory in a place: of the host, or of an NPU or a GPU, all with the same methods."""

from __future__ import annotations

import ctypes
from typing import Callable, NamedTuple, Union

from kvferry import gpu, npu
from kvferry._device import DeviceError, Memory, Runtime
from kvferry._memory import Mapping
from kvferry._options import takes
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL

HOST = "host"


class Kind(NamedTuple):
    """A kind of device."""

    name: str
    variable: str  # names the library
    runtime: Callable[[], Runtime]


KINDS = {"npu": Kind("NPU", npu.VARIABLE, AscendCL), "cuda": Kind("GPU", gpu.VARIABLE, CUDA)}


class PlaceError(RuntimeError):
    """There is no such memory; the text says why."""


class HostMemory:
    """Host memory, with the methods of a device's."""

    location = "*"

    def __init__(self, size: int) -> None:
        """OSError, OverflowError or ValueError when the system does not give so much."""
        self._mapping = Mapping(size)
        self.address = self._mapping.address
        self.size = size

    def write(self, data: bytes, offset: int = 0) -> None:
        self._mapping.buffer[offset : offset + len(data)] = data

    def write_from(self, address: int, length: int, offset: int = 0) -> None:
        ctypes.memmove(self.address + offset, address, length)

    def read(self, length: int, offset: int = 0) -> bytes:
        return self._mapping.buffer[offset : offset + length]

    def read_to(self, address: int, length: int, offset: int = 0) -> None:
        ctypes.memmove(address, self.address + offset, length)


Placed = Union[HostMemory, Memory]


@takes("host, npu:N or cuda:N")
def place(text: str) -> str:
    """A place as an option has it: "host", "npu:0", "cuda:1"; "npu" is the first one. ValueError for any other."""
    if text == HOST:
        return text
    kind, _, device = text.partition(":")
    if kind not in KINDS or not (device or "0").isdecimal():
        raise ValueError(text)
    return f"{kind}:{int(device or 0)}"


def allocate(place: str, size: int) -> Placed:
    """Memory in a place. PlaceError where there is none."""
    location, _, device = place.partition(":")
    try:
        return HostMemory(size) if place == HOST else _runtime(location).allocate(size, int(device))
    except (DeviceError, OSError, OverflowError, ValueError) as e:
        raise PlaceError(f"{size_text(size)} of memory on {place} cannot be had: {e}") from e


def _runtime(location: str) -> Runtime:
    """The devices of "npu" or "cuda". PlaceError where the machine has none."""
    kind = KINDS[location]
    try:
        return kind.runtime()
    except DeviceError as e:
        simulate = f"export {kind.variable}=$(kvferry simulator {location}) simulates some"
        raise PlaceError(f"there are no {kind.name}s: {e}; {simulate}") from e


def size_text(size: int) -> str:
    """A number of bytes for people, such as 16 KiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
