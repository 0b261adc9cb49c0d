"""A prefill or decode side of SGLang without a model: its manager, senders or receivers, and memory in place of a KV
cache. It runs with an interpreter that has SGLang, driven as support.worker says."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.disaggregation.base.conn import KVArgs, KVPoll, StateType
from sglang.srt.disaggregation.mooncake.conn import (
    MooncakeKVBootstrapServer,
    MooncakeKVManager,
    MooncakeKVReceiver,
    MooncakeKVSender,
)
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.distributed.device_communicators import mooncake_transfer_engine
from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
from sglang.srt.server_args import ServerArgs

from support.worker import Server, Worker

HOST = "127.0.0.1"
PAGE_TOKENS = 64
STATES = {KVPoll.Success: "success", KVPoll.Failed: "failed"}


class CPUTensor:
    """A tensor of bytes in host memory: a Region."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensor = torch.zeros(size, dtype=torch.uint8)
        self.address: int = self.tensor.data_ptr()

    def read(self, offset: int, length: int) -> bytes:
        data: bytes = self.tensor[offset : offset + length].numpy().tobytes()
        return data

    def write(self, offset: int, data: bytes) -> None:
        self.tensor[offset : offset + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def free(self) -> None:
        del self.tensor


class SGLang(Worker):
    """The operations: those of Worker, and SGLang's."""

    def __init__(self) -> None:
        super().__init__()
        self._senders: dict[int, MooncakeKVSender] = {}

    def region(self, region: str, size: int, place: str) -> int:
        if place != "tensor":
            return super().region(region, size, place)
        self._regions[region] = made = CPUTensor(size)
        return made.address

    def set_up(self, mode: str, bootstrap_port: int, npu: int, memories: dict[str, list[list[int]]]) -> str:
        """Start SGLang's manager in a mode, "prefill" or "decode", the former with its bootstrap server on that port;
        return the engine's name. Memories of each kind, "kv", "aux" and "state", are [address, length, bytes of an
        item]."""
        arguments = ServerArgs(
            model_path="none",
            device="cpu",
            host=HOST,
            disaggregation_mode=mode,
            disaggregation_transfer_backend="mooncake",
            disaggregation_bootstrap_port=bootstrap_port,
        )
        publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=npu))
        get_parallel().override_permanently(pp_group=SimpleNamespace(world_size=1, rank_in_group=0))
        engine = mooncake_transfer_engine.init_mooncake_transfer_engine(HOST, gpu_id=npu)
        if mode == "prefill":
            self._bootstrap = MooncakeKVBootstrapServer(HOST, bootstrap_port)
        self._manager = MooncakeKVManager(kv_arguments(npu, memories), DisaggregationMode(mode), arguments)
        self._bootstrap_address = f"{HOST}:{bootstrap_port}"
        return str(engine.get_session_id())

    def expect(self, room: int, pages: int, aux: int) -> None:
        """Wait for a receiver of so many pages and of this item of each of the aux memories."""
        self._senders[room] = sender = MooncakeKVSender(self._manager, self._bootstrap_address, room)
        sender.init(pages, aux)
        until(lambda: sender.poll() != KVPoll.Bootstrapping)

    def send(self, room: int, chunks: list[list[int]], state: list[int]) -> str:
        """Send pages of the KV cache, in chunks as their prefill ends, and with the last one the aux items and pages of
        the state; return how that ended."""
        sender = self._senders.pop(room)
        for number, pages in enumerate(chunks, 1):
            sender.send(indices(pages), [indices(state)] if number == len(chunks) else None)
        return outcome(sender)

    def receive(self, prefill: str, room: int, pages: list[int], aux: int, state: list[int]) -> str:
        """Receive what the prefill side sends, to these pages and items; return how that ended."""
        until(lambda: self._manager.try_ensure_parallel_info(prefill))
        receiver = MooncakeKVReceiver(self._manager, prefill, room)
        receiver.init(0)
        receiver.send_metadata(indices(pages), aux, [indices(state)])
        return outcome(receiver)

    def engine_file(self) -> str:
        return str(sys.modules["mooncake.engine"].__file__)


def kv_arguments(npu: int, memories: dict[str, list[list[int]]]) -> KVArgs:
    """Say what SGLang's pools say of themselves."""
    columns = {kind: [list(column) for column in zip(*rows)] for kind, rows in memories.items()}
    made = KVArgs()
    made.engine_rank = 0
    made.kv_data_ptrs, made.kv_data_lens, made.kv_item_lens = columns["kv"]
    made.kv_layer_ids = []
    made.kv_cache_dtype_str = "bfloat16"
    made.aux_data_ptrs, made.aux_data_lens, made.aux_item_lens = columns["aux"]
    made.state_types = [StateType.SWA]
    made.state_data_ptrs, made.state_data_lens, made.state_item_lens = ([column] for column in columns["state"])
    made.state_layer_ids, made.state_dim_per_tensor = [[]], [[]]
    made.state_slice_outer_counts, made.state_conv_shard_groups = [[]], [[]]
    made.is_hybrid_mla_backend = False
    made.swa_kv_cache_layout = None
    made.ib_device, made.gpu_id = "", npu
    made.kv_head_num = made.total_kv_head_num = 2
    made.page_size = PAGE_TOKENS
    made.system_dp_rank = made.pp_rank = made.prefill_start_layer = 0
    made.rust_http_port = made.prefill_end_layer = made.mla_compression_ratios = None
    made.kv_buf_groups, made.hidden_kv_layers, made.draft_kv_layers = 2, len(memories["kv"]) // 2, 0
    return made


def indices(pages: list[int]) -> Any:
    return np.array(pages, dtype=np.int32)


def outcome(end: Any) -> str:
    """Wait until a sender or a receiver has ended; return how, with SGLang's reason where it failed."""
    until(lambda: end.poll() in STATES)
    if end.poll() == KVPoll.Failed:
        try:
            end.failure_exception()
        except Exception as reason:
            return f"failed: {reason}"
    end.clear()
    return "success"


def until(condition: Any) -> None:
    """Wait as SGLang's scheduler does, by asking. The test that asked has the time limit."""
    while not condition():
        time.sleep(0.005)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Server(SGLang(), answers).serve(sys.stdin)


if __name__ == "__main__":
    main()
