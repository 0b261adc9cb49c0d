"""Ranges of bytes: where the memory of a process is, as other processes see it."""

from __future__ import annotations

from typing import Any

from kvferry._ffi import u64


class Range:
    """nbytes bytes from an address on, in some process. It keeps no memory alive.

    range[a:b] is a part of it, in bytes. Ranges with the same numbers are equal. They can be pickled and sent anywhere:
    a peer's engine takes them as what is remote.
    """

    __slots__ = ("address", "nbytes")

    address: int
    nbytes: int

    def __init__(self, address: int, nbytes: int) -> None:
        self.address, self.nbytes = u64(address, "address"), u64(nbytes, "nbytes")
        if self.address + self.nbytes > 1 << 64:
            raise ValueError(f"{self.nbytes} bytes at {self.address:#x} wrap around the address space")

    def __getitem__(self, part: slice) -> Range:
        return Range(*part_of(self, part))

    def __len__(self) -> int:
        return self.nbytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range) and (self.address, self.nbytes) == (other.address, other.nbytes)

    def __hash__(self) -> int:
        return hash((self.address, self.nbytes))

    def __repr__(self) -> str:
        return f"Range({self.address:#x}, {self.nbytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Range, (self.address, self.nbytes)


def part_of(of: Any, part: slice) -> tuple[int, int]:
    """The address and the length of a part of what has an address and nbytes."""
    if not isinstance(part, slice):
        raise TypeError(f"a part of a range is a slice of bytes, [a:b], not {part!r}")
    start, stop, step = part.indices(of.nbytes)
    if step != 1:
        raise ValueError("a part of a range is contiguous: its step is 1")
    for bound in (part.start, part.stop):
        if bound is not None and not -of.nbytes <= bound <= of.nbytes:
            raise IndexError(f"byte {bound} is outside a range of {of.nbytes} bytes")
    return of.address + start, max(0, stop - start)
