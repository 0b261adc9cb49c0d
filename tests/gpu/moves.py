"""A program that moves bytes between GPU memory and the host's, by engines of this process over TCP, and compares them:
what compute-sanitizer looks at. `python tests/gpu/moves.py`"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Union

sys.path.insert(0, str(Path(__file__).parents[1]))

from kvferry._memory import Mapping
from kvferry.gpu import CUDA, Memory
from mooncake.engine import TransferEngine
from support.memory import Span
from support.pattern import pattern
from support.spans import adjacent, scattered

SIZE = 6 << 20
LAYOUTS = {
    "small": scattered([1 + 7 * i % 9000 for i in range(200)]),
    "adjacent": adjacent([4096] * 200),
    "large": [(3, 1, SIZE - 3)],
}


class HostMemory:
    """Host memory, with the methods of a GPU's."""

    def __init__(self) -> None:
        self._mapping = Mapping(SIZE)
        self.address = self._mapping.address

    def write(self, data: bytes) -> None:
        self._mapping.buffer[:] = data

    def read(self, length: int) -> bytes:
        return self._mapping.buffer[:length]


Side = tuple[Any, Union[HostMemory, Memory]]


def engine() -> Any:
    made = TransferEngine()
    assert made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return made


def move(near: Side, far: Side, opcode: str, spans: list[Span]) -> None:
    """Fill both memories, move blocks, and compare all of both memories."""
    (initiator, local), (target, remote) = near, far
    mine, theirs = bytearray(pattern(1, SIZE)), bytearray(pattern(2, SIZE))
    local.write(bytes(mine))
    remote.write(bytes(theirs))
    columns = zip(*((local.address + a, remote.address + b, length) for a, b, length in spans))
    name = f"127.0.0.1:{target.get_rpc_port()}"
    assert getattr(initiator, f"batch_transfer_sync_{opcode}")(name, *map(list, columns)) == 0
    for a, b, length in spans:
        if opcode == "write":
            theirs[b : b + length] = mine[a : a + length]
        else:
            mine[a : a + length] = theirs[b : b + length]
    assert local.read(SIZE) == mine and remote.read(SIZE) == theirs


def main() -> None:
    os.environ["KVFERRY_SAME_HOST"] = "0"
    cuda = CUDA()
    sides = [(engine(), memory) for memory in (cuda.allocate(SIZE), cuda.allocate(SIZE), HostMemory())]
    for made, memory in sides:
        assert made.register_memory(memory.address, SIZE) == 0
    for near, far in ((0, 1), (0, 2), (2, 0)):
        for opcode in ("write", "read"):
            for name, spans in LAYOUTS.items():
                move(sides[near], sides[far], opcode, spans)
                print(f"{opcode}, {name}, {near} to {far}: right", flush=True)
    for made, memory in sides:
        assert made.unregister_memory(memory.address) == 0


if __name__ == "__main__":
    main()
