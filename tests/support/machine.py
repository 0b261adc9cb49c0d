"""The GPUs of this machine, for the tests that want real ones; and what they are used by."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from kvferry.gpu import FILE

from . import devices, runtimes
from .inprocess import environment
from .memory import Memory
from .peer import Peer
from .peers import Peers
from .spans import adjacent, adjacent_near_only, scattered

MIB = 1 << 20
VARIABLE = devices.VARIABLES["cuda"]

COUNT = "from kvferry.gpu import CUDA; print(CUDA().devices())"
TORCH_WORKS = "import torch; torch.zeros(1, device='cuda').cpu()"
PROBE_LIMIT = 120.0  # seconds


def probe(program: str) -> tuple[str, str]:
    """What a program of Python prints, and why it failed: in a process of its own, since it uses the GPU."""
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PROBE_LIMIT)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PROBE_LIMIT:.0f} s"
    lines = done.stderr.strip().splitlines() or ["it failed"]
    return done.stdout, "" if done.returncode == 0 else lines[-1]


def count() -> tuple[int, str]:
    """The number of GPUs, and why there are none."""
    found, why = probe(COUNT)
    return (0, why) if why else (int(found), "the driver has none")


GPUS, WHY_NOT = count()


@functools.cache
def why_no_torch() -> str:
    """Why PyTorch cannot use the GPU; "" where it can."""
    if GPUS == 0:
        return WHY_NOT
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    if os.environ.get(VARIABLE):
        return "PyTorch cannot use simulated GPUs"
    return probe(TORCH_WORKS)[1]


def need_torch() -> None:
    if why_no_torch():
        pytest.skip(f"this needs PyTorch with a GPU: {why_no_torch()}")


def need_gpus(number: int) -> None:
    if number > GPUS:
        pytest.skip(f"this needs {number} GPUs, and there {'is' if GPUS == 1 else 'are'} {GPUS}")


def gpu(index: int = 0) -> str:
    """Memory of a GPU: a tensor, where there is PyTorch."""
    return f"cuda:{index}" if why_no_torch() else f"torch:{index}"


def settings(**more: str) -> dict[str, str]:
    """The environment in which a peer finds the GPUs, and NPUs, which are simulated ones if no library is named."""
    named = os.environ.get(VARIABLE, "")
    return devices.settings(**{VARIABLE: named, runtimes.VARIABLES["cuda"]: named or FILE, **more})


def start(peers: Peers, **more: str) -> Peer:
    """Start a peer of ours, without an engine."""
    return peers("ours", **settings(**more))


SIZES = (1, 2, 3, 7, 63, 64, 65, 511, 4095, 4096, 4097, 16384, 65535, 65536, 65537, 262147, MIB + 1, 2 * MIB + 1)
SIZE = sum(SIZES) + MIB  # of memory that has room for each of the layouts
LAYOUTS = {
    "one byte": [(5, 9, 1)],
    "all sizes, scattered": scattered(SIZES),
    "small and adjacent": adjacent([4096] * 300),
    "adjacent at the initiator only": adjacent_near_only([16384, 5, 4096, 70001] * 12),
    "many and tiny": scattered([1 + 7 * i % 600 for i in range(400)], seed=4),
    "whole": [(3, 1, SIZE - 3)],
}


def fill(memories: Sequence[Memory], seed: int) -> None:
    for number, memory in enumerate(memories):
        memory.fill(1000 * seed + number)


def check(memories: Sequence[Memory]) -> None:
    """Compare all bytes of all memories, of the untouched ones, too."""
    for memory in memories:
        memory.check()
