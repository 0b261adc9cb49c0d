"""NPUs and GPUs, and how fast they copy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, NamedTuple

from kvferry._device import DeviceError, Memory, Runtime
from kvferry.gpu import CUDA
from kvferry.npu import AscendCL

RUNTIMES: dict[str, Callable[[], Runtime]] = {"npu": AscendCL, "cuda": CUDA}
BLOCK = 2 << 20  # bytes of a copy: the default of KVFERRY_STAGING_BLOCK_SIZE
ROUNDS = 8  # of copies, of which the fastest counts


class Kind(NamedTuple):
    """The devices of a vendor."""

    kind: str  # npu or cuda
    number: int
    library: str
    simulated: bool
    problem: str  # why there are none


class Copies(NamedTuple):
    """How fast blocks of BLOCK bytes move between a device and page-locked host memory, in bytes per second."""

    device: str
    out: float
    into: float
    problem: str  # why it could not be measured


def kinds() -> list[Kind]:
    """The devices that this process may use, by kind."""
    return [_kind(name) for name in RUNTIMES]


def _kind(name: str) -> Kind:
    try:
        runtime = RUNTIMES[name]()
    except DeviceError as e:
        return Kind(name, 0, "", False, str(e))
    with runtime:
        try:
            return Kind(name, runtime.devices(), runtime.path, runtime.simulated, "")
        except DeviceError as e:
            return Kind(name, 0, runtime.path, runtime.simulated, str(e))


def copies(kind: str, device: int) -> Copies:
    """Measure a device. It takes some milliseconds, and little memory."""
    name = f"{kind}:{device}"
    try:
        with RUNTIMES[kind]() as runtime, _memory(runtime, device) as (memory, host):
            out = _rate(lambda: memory.read_to(host, BLOCK))
            into = _rate(lambda: memory.write_from(host, BLOCK))
            return Copies(name, out, into, "")
    except DeviceError as e:
        return Copies(name, 0, 0, str(e))


@contextmanager
def _memory(runtime: Runtime, device: int) -> Iterator[tuple[Memory, int]]:
    with runtime.allocate(BLOCK, device) as memory, runtime.allocate_pinned(BLOCK, device) as host:
        yield memory, host.address


def _rate(copy: Callable[[], None]) -> float:
    fastest = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        copy()
        fastest = min(fastest, time.perf_counter() - start)
    return BLOCK / fastest
