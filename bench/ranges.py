#!/usr/bin/env python3
"""What it costs to post the ranges of a paged KV cache: as lists, as arrays, and as pages.

    ranges.py [--pages N] [--pools N] [--length BYTES] [--rounds N] [--json FILE]

A round posts the same ranges in each way, in random order, between two engines of this process, and waits for their end
outside of what is measured: the processor time of the calling thread until the engine has the ranges. It begins with
page numbers, which is what a scheduler has, or with lists and arrays that are there already. Compare the ratios, which
are of medians of one run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from kvferry._arrays import pages
from kvferry._engine import Engine
from kvferry._memory import Mapping
from mooncake.engine import TransferEngine

WRITE = 1
LISTS, GIVEN_LISTS = "lists, made of page numbers", "lists"
ARRAYS, GIVEN_ARRAYS = "arrays, made of page numbers", "arrays"
PAGES = "pages"
WANTED = {LISTS: 0.1, GIVEN_ARRAYS: 1.0}  # what pages cost at most, as a part of the other way


class Node:
    """An engine with memory that peers may write."""

    def __init__(self, size: int) -> None:
        self.engine = TransferEngine()
        self.memory = Mapping(size)
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise SystemExit("an engine cannot be made")
        if self.engine.register_memory(self.memory.address, size) != 0:
            raise SystemExit(f"{size} bytes cannot be registered")
        self.name = f"127.0.0.1:{self.engine.get_rpc_port()}"


class Ranges:
    """Every second page of several pools, on both sides, in random order."""

    def __init__(self, count: int, pools: int, length: int) -> None:
        pool = 2 * count * length
        self.near, self.far = Node(pools * pool), Node(pools * pool)
        order = np.random.default_rng(1)
        self.local = 2 * order.permutation(count).astype(np.uint64)
        self.remote = 2 * order.permutation(count).astype(np.uint64)
        starts = [(self.near.memory.address + i * pool, self.far.memory.address + i * pool) for i in range(pools)]
        self.fields = np.array([(a, length, b, length, length) for a, b in starts], dtype=np.uint64)
        self.lists, self.arrays = self.as_lists(), self.as_arrays()
        engine = self.near.engine.get_engine()
        assert engine is not None
        self._inner: Engine = engine
        self._peer = engine.segment(self.far.name, 10)

    def as_lists(self) -> tuple[list[int], list[int], list[int]]:
        """The ranges as Python lists, as a program makes them that has no other way."""
        buffers, peers, lengths = [], [], []
        here, there = self.local.tolist(), self.remote.tolist()
        for base, stride, peer, peer_stride, length in self.fields.tolist():
            buffers += [base + page * stride for page in here]
            peers += [peer + page * peer_stride for page in there]
            lengths += [length] * len(here)
        return buffers, peers, lengths

    def as_arrays(self) -> tuple[Any, Any, Any]:
        """The ranges as arrays of NumPy."""
        base, stride, peer, peer_stride, length = self.fields.T[:, :, None]
        buffers, peers = base + self.local * stride, peer + self.remote * peer_stride
        return buffers.ravel(), peers.ravel(), np.broadcast_to(length, buffers.shape).ravel()

    def ways(self) -> dict[str, Callable[[], int]]:
        """How they are posted; each returns a batch id."""
        engine, target = self.near.engine, self.far.name
        return {
            LISTS: lambda: engine.batch_transfer_async_write(target, *self.as_lists()),
            GIVEN_LISTS: lambda: engine.batch_transfer_async_write(target, *self.lists),
            ARRAYS: lambda: self._post_arrays(*self.as_arrays()),
            GIVEN_ARRAYS: lambda: self._post_arrays(*self.arrays),
            PAGES: lambda: self._inner.submit_pages(
                WRITE, self._peer, pages(self.local, self.remote, self.fields), 0, 30
            ),
        }

    def _post_arrays(self, buffers: Any, peers: Any, lengths: Any) -> int:
        return self.near.engine.batch_transfer_async_write_arrays(self.far.name, buffers, peers, lengths)

    def post(self, way: Callable[[], int]) -> float:
        """Post once and wait; the seconds of processor time that posting took the calling thread."""
        begin = time.thread_time()
        batch = way()
        took = time.thread_time() - begin
        if batch == 0 or self.near.engine.get_batch_transfer_status([batch]) != 0:
            raise SystemExit("a transfer failed: the log says why")
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs to post the ranges of a paged KV cache.")
    parser.add_argument("--pages", type=int, default=1000, help="pages of each pool; %(default)s")
    parser.add_argument(
        "--pools", type=int, default=20, help="pools of pages, as keys and values of layers; %(default)s"
    )
    parser.add_argument("--length", type=int, default=64, help="bytes of a page; %(default)s")
    parser.add_argument("--rounds", type=int, default=31, help="how often each way is measured; %(default)s")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    ranges = Ranges(options.pages, options.pools, options.length)
    ways = ranges.ways()
    took: dict[str, list[float]] = {name: [] for name in ways}
    shuffled = random.Random(1)
    for _ in range(options.rounds):
        for name in shuffled.sample(list(ways), len(ways)):
            took[name].append(ranges.post(ways[name]))
    medians = {name: statistics.median(times) for name, times in took.items()}
    print(f"to post {options.pages} pages of {options.pools} pools, {options.pages * options.pools} ranges:")
    for name, median in medians.items():
        ratio = medians[PAGES] / median
        wanted = f", at most {WANTED[name]} is wanted" if name in WANTED else ""
        print(f"  {name:30} {median * 1e3:6.2f} ms   pages cost {ratio:.2f} of it{wanted}")
    if options.json:
        options.json.write_text(json.dumps({"milliseconds": {name: 1e3 * m for name, m in medians.items()}}, indent=2))


if __name__ == "__main__":
    main()
