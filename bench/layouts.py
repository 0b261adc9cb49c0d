#!/usr/bin/env python3
"""What a change of layout costs: a plan, the same bytes as plain blocks of 64 KiB, and the same runs as ranges.

    layouts.py [--mib N] [--rounds N] [--json FILE]

Half of the heads of a cache in blocks of 16 tokens, NHD, goes to a cache that has only these, between two engines of
this process, over TCP and the loopback interface. The runs are 256 bytes to 2 KiB long. The ways take turns; compare
the ratios, which are of medians of one run. Then 20,480 runs of 256 bytes are posted: the processor time of the calling
thread until the engine has the plan.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any, Callable

os.environ.setdefault("KVFERRY_SAME_HOST", "0")  # the engines stand for those of two hosts

import numpy as np

import kvferry
from mooncake.engine import TransferEngine

RUNS = (256, 512, 1024, 2048)  # bytes
TOKENS, LAYERS = 16, 4  # tokens of a block
BLOCK = 64 << 10
PLAN, PLAIN, RANGES = "plan", "plain blocks of 64 KiB", "a range for each run"
POSTED = 20_480  # runs


class Node:
    """An engine with a cache that peers may write."""

    def __init__(self, blocks: int, heads: int, run: int) -> None:
        self.engine = TransferEngine()
        self.cache = np.random.default_rng(1).integers(0, 255, (LAYERS, 2, blocks, TOKENS, heads, run), np.uint8)
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise SystemExit("an engine cannot be made")
        if self.engine.register_memory(self.cache.ctypes.data, self.cache.nbytes) != 0:
            raise SystemExit(f"{self.cache.nbytes} bytes cannot be registered")
        self.name = f"127.0.0.1:{self.engine.get_rpc_port()}"

    def layout(self, first: int) -> kvferry.Layout:
        return kvferry.Layout(self.cache, "layer kv block token head dim", heads=(first, 2))


class Move:
    """One of two heads, from all blocks of one cache to those of another, in random order."""

    def __init__(self, size: int, run: int) -> None:
        blocks = size // (LAYERS * 2 * TOKENS * run)
        self.size = blocks * LAYERS * 2 * TOKENS * run
        self.near, self.far = Node(blocks, 2, run), Node(blocks, 1, run)
        order = np.random.default_rng(2)
        here, there = order.permutation(blocks), order.permutation(blocks)
        self.what = kvferry.plan(
            self.near.layout(0).blocks(here.tolist()), self.far.layout(1).blocks(there.tolist()), blocks * TOKENS
        )
        near, far = self.near.cache, self.far.cache
        self.runs = len(here) * LAYERS * 2 * TOKENS
        self.ranges = self._addresses(near, here, 1), self._addresses(far, there, 0), self._lengths(self.runs, run)
        plain = BLOCK * np.arange(self.size // BLOCK, dtype=np.uint64)
        targets = far.ctypes.data + order.permutation(plain)
        self.plain = near.ctypes.data + plain, targets, self._lengths(len(plain), BLOCK)
        self.want = near[:, :, here, :, 1]
        self.there = there

    @staticmethod
    def _addresses(cache: Any, blocks: Any, head: int) -> Any:
        places = np.indices((LAYERS, 2, len(blocks), TOKENS)).reshape(4, -1)
        layer, kv, block, token = cache.strides[:4]
        offsets = places[0] * layer + places[1] * kv + blocks[places[2]] * block + places[3] * token
        return (cache.ctypes.data + offsets + head * cache.strides[4]).astype(np.uint64)

    @staticmethod
    def _lengths(count: int, length: int) -> Any:
        return np.full(count, length, np.uint64)

    def ways(self) -> dict[str, Callable[[], None]]:
        return {
            PLAN: lambda: self.what.write(self.near.engine, self.far.name),
            PLAIN: lambda: self._write(*self.plain),
            RANGES: lambda: self._write(*self.ranges),
        }

    def _write(self, *ranges: Any) -> None:
        batch = self.near.engine.batch_transfer_async_write_arrays(self.far.name, *ranges)
        if batch == 0 or self.near.engine.get_batch_transfer_status([batch]) != 0:
            raise SystemExit("a transfer failed: the log says why")

    def check(self) -> None:
        self.far.cache[:] = 0
        self.ways()[PLAN]()
        if not (self.far.cache[:, :, self.there, :, 0] == self.want).all():
            raise SystemExit("the plan has moved other bytes than it should")


def measure(size: int, run: int, rounds: int) -> dict[str, float]:
    """GB/s of each way, as the median of the rounds."""
    move = Move(size, run)
    move.check()
    ways = move.ways()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    shuffled = random.Random(1)
    for _ in range(rounds):
        for name in shuffled.sample(list(ways), len(ways)):
            begin = time.perf_counter()
            ways[name]()
            rates[name].append(move.size / (time.perf_counter() - begin) / 1e9)
    return {name: statistics.median(found) for name, found in rates.items()}


def post(rounds: int) -> float:
    """Milliseconds of processor time to post POSTED runs of 256 bytes."""
    blocks = POSTED // (LAYERS * 2 * TOKENS)
    shape = (LAYERS, 2, blocks, TOKENS)
    source, destination = np.zeros((*shape, 2, 256), np.uint8), np.zeros((*shape, 1, 256), np.uint8)
    axes = "layer kv block token head dim"
    what = kvferry.plan(
        kvferry.Layout(source, axes).blocks(range(blocks)),
        kvferry.Layout(destination, axes, heads=(1, 2)).blocks(list(reversed(range(blocks)))),
        blocks * TOKENS,
    )
    took = []
    with kvferry.Engine() as near, kvferry.Engine() as far:
        regions = near.register(source), far.register(destination)
        peer = near.open(far.name)
        for _ in range(rounds):
            begin = time.thread_time()
            transfer = peer.write(what)
            took.append(time.thread_time() - begin)
            transfer.result()
        del regions
    return statistics.median(took) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="What a change of layout costs.")
    parser.add_argument("--mib", type=int, default=32, help="bytes of a transfer; %(default)s MiB")
    parser.add_argument("--rounds", type=int, default=21, help="how often each way is measured; %(default)s")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = {}
    for run in RUNS:
        rates = found[run] = measure(options.mib << 20, run, options.rounds)
        print(f"runs of {run} bytes:")
        for name, rate in rates.items():
            print(f"  {name:24} {rate:6.2f} GB/s   the plan has {rates[PLAN] / rate:.2f} of its rate")
    posting = post(options.rounds)
    print(f"to post a plan of {POSTED} runs: {posting:.2f} ms")
    if options.json:
        options.json.write_text(json.dumps({"gigabytes_per_second": found, "post_milliseconds": posting}, indent=2))


if __name__ == "__main__":
    main()
