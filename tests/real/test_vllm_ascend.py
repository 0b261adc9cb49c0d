"""vllm-ascend's own transfer threads, between processes with simulated NPUs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from real import programs
from support import devices, ports
from support.memory import Memory
from support.peer import Peer, environment

LAYERS, BLOCKS, BLOCK = 3, 512, 4096  # BLOCK in bytes
THREADS = 8  # of the decode side that fetch at once: one for each of the prefill side's ports
REQUESTS = 48


class Side:
    """A process of vllm-ascend, whose KV cache is on an NPU."""

    def __init__(self, mode: str, npu: int, log: Path) -> None:
        python = programs.interpreter("sglang")  # vllm-ascend lies beside it
        env = environment({**programs.engine_settings("kvferry"), **devices.settings()}, ours=True)
        self.peer = Peer(mode, python, env, log / f"{mode}.log", "real.ascend_peer")
        self.caches = [[self._memory(npu) for _ in "KV"] for _ in range(LAYERS)]
        for number, memory in enumerate(self.memories):
            memory.fill(1000 * npu + number)
        held = ports.hold_range(THREADS + 1)
        engine, self.ports = ports.port_of(held[0]), [ports.port_of(s) for s in held[1:]]
        for s in held:
            s.close()
        self.peer.ask(
            "set_up",
            mode=mode,
            name=f"127.0.0.1:{engine}:npu_{npu}",
            caches=[[memory.address for memory in layer] for layer in self.caches],
            size=BLOCKS * BLOCK,
            block=BLOCK,
            port=self.ports[0],
            threads=THREADS,
        )

    def _memory(self, npu: int) -> Memory:
        return self.peer.memory(BLOCKS * BLOCK, register=False, place=f"npu:{npu}")

    @property
    def memories(self) -> list[Memory]:
        return [memory for layer in self.caches for memory in layer]

    def check(self) -> None:
        for memory in self.memories:
            memory.check()


def requests(decode: Side, prefill: Side, seed: int) -> list[dict[str, Any]]:
    """Make requests for blocks in runs and alone, which are fetched to different ones."""
    chance = random.Random(seed)
    targets = chance.sample(range(BLOCKS), BLOCKS)
    made = []
    for number in range(REQUESTS):
        count = chance.randrange(1, 10)
        first = chance.randrange(BLOCKS - count)
        local, targets = sorted(targets[:count]), targets[count:]
        port = prefill.ports[number % THREADS]
        made.append(
            {"id": f"request {number}", "port": port, "local": local, "remote": list(range(first, first + count))}
        )
    return made


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    devices.need_simulator("npu")
    made = Side("prefill", 0, tmp_path), Side("decode", 1, tmp_path)
    yield made
    for side in made:
        side.peer.kill()


@pytest.mark.timeout(600)
def test_eight_threads_fetch_every_block_from_another_npu_and_change_no_other(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    made = requests(decode, prefill, seed=1)
    for number, request in enumerate(made):
        prefill.peer.ask("expect", sender=number % THREADS, request=request["id"])
    assert decode.peer.ask("fetch", requests=made) == []
    for request in made:
        for near, far in zip(decode.memories, prefill.memories):
            for a, b in zip(request["local"], request["remote"]):
                near.model[a * BLOCK : (a + 1) * BLOCK] = far.model[b * BLOCK : (b + 1) * BLOCK]
    decode.check()
    prefill.check()
    assert sorted(itertools.chain.from_iterable(prefill.peer.ask("fetched"))) == sorted(
        request["id"] for request in made
    )


@pytest.mark.timeout(600)
def test_blocks_of_a_prefill_side_that_died_are_reported_invalid(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    first, second = requests(decode, prefill, seed=2)[:2]
    second["port"] = first["port"]  # whose addresses the decode side will know
    prefill.peer.ask("expect", sender=0, request=first["id"])
    assert decode.peer.ask("fetch", requests=[first]) == []
    prefill.peer.kill()
    assert decode.peer.ask("fetch", requests=[second]) == second["local"]
