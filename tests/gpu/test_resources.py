"""What an engine takes for GPU memory: page-locked memory within the configured pool, and none of the GPU's."""

from __future__ import annotations

from support import machine
from support.machine import MIB, gpu
from support.memory import transfer
from support.peers import Peers
from support.process import Holdings

POOL = 32 * MIB
SIZE = 128 * MIB
SLACK = 48 * MIB  # what a process may take for itself: heaps, stacks, what the driver needs for streams
ON_GPU = 16 * MIB  # what the driver may take of the GPU, for streams and events of both processes


def test_moving_much_takes_no_more_than_the_pool(start_peer: Peers) -> None:
    machine.need_torch()
    settings = {"KVFERRY_STAGING_POOL_SIZE": str(POOL), "KVFERRY_SAME_HOST": "0"}
    near, far = (machine.start(start_peer, **settings).create() for _ in range(2))
    local, remote = (peer.memory(SIZE, seed, place=gpu()) for seed, peer in enumerate((near, far)))
    before = [Holdings.of(peer.pid).resident for peer in (near, far)]
    taken = near.ask("gpu_memory")
    block = MIB
    spans = [(i * block, SIZE - (i + 1) * block, block - 1) for i in range(SIZE // block)]
    for opcode in ("write", "read") * 2:
        transfer(local, remote, opcode, spans)
    assert near.ask("gpu_memory") - taken <= ON_GPU
    for peer, had in zip((near, far), before):
        assert Holdings.of(peer.pid).resident - had <= POOL + SLACK
    local.check()
    remote.check()
