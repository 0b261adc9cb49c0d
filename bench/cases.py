"""What the benchmark of NPUs measures."""

from __future__ import annotations

from typing import NamedTuple

from nodes import Work

KIB, MIB = 1 << 10, 1 << 20
BLOCKS = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB)
SMALL = BLOCKS[:3]  # those that the engine gathers
STAGED = BLOCKS[:4]  # those that staging alone is measured with, gathered or not
OPERATIONS = {"write": "->", "read": "<-"}  # from the initiator to the target, and the other way

WORKING_SET = 64 * MIB  # bytes that a case moves before it begins again
BATCH = 4 * MIB  # bytes of a batch, where a block is not larger
IN_FLIGHT = 4  # batches
MEMORY = 2 * WORKING_SET  # bytes of a node: behind each block as much again is left alone
POOL = 64 * MIB  # bytes of staging blocks
LINK = 10  # Gbit/s

# How small blocks are copied, and the settings for that. bench/staging.py compares what the engine chooses by itself.
GATHERED, ONE_BY_ONE = "gathered", "one by one"
SETTINGS = {GATHERED: {"KVFERRY_DEVICE_COPY": "gather"}, ONE_BY_ONE: {"KVFERRY_DEVICE_COPY": "single"}}

# What a copy between a simulated NPU and the host costs: the simulator's default, in seconds and GB/s.
LATENCY, RATE = 15e-6, 25.0


def one_by_one(block: int) -> float:
    """GB/s of blocks that a simulated NPU copies one after the other."""
    return block / (LATENCY + block / (RATE * 1e9)) / 1e9


class Pair(NamedTuple):
    """Where the memory of an initiator and of a target is, "host" or "npu", and how small blocks are copied."""

    initiator: str
    target: str
    way: str = GATHERED

    def kind(self, role: str) -> str:
        """Where the memory of the "initiator" or of the "target" is."""
        return self.initiator if role == "initiator" else self.target

    def node(self, role: str) -> str:
        """The name of the process."""
        kind = self.kind(role)
        return f"{kind} {role}" + (f", {self.way}" if kind == "npu" and self.way != GATHERED else "")


HOST_TO_HOST = Pair("host", "host")
NPU_TO_HOST = Pair("npu", "host")
HOST_TO_NPU = Pair("host", "npu")
NPU_TO_NPU = Pair("npu", "npu")
PAIRS = (HOST_TO_HOST, NPU_TO_HOST, HOST_TO_NPU, NPU_TO_NPU)


class Case(NamedTuple):
    """A pair, and what it moves."""

    pair: Pair
    work: Work


def work(operation: str, block: int, scattered: bool = True) -> Work:
    """Blocks of that size, with gaps between them unless they are to be neighbours."""
    stride = 2 * block if scattered else block
    return Work(operation, block, WORKING_SET // block, max(1, BATCH // block), IN_FLIGHT, stride)


def all_cases() -> list[Case]:
    """Every case; those that are compared with each other, beside each other."""
    found = []
    for block in BLOCKS:
        slow = [pair._replace(way=ONE_BY_ONE) for pair in (NPU_TO_HOST, HOST_TO_NPU) if block in SMALL]
        for operation in OPERATIONS:
            found += [Case(pair, work(operation, block)) for pair in (*PAIRS, *slow)]
    return found
