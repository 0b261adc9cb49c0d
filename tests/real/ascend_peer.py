"""A prefill or decode side of vllm-ascend without a model: its engine and threads, with memory in place of a KV cache.

It runs with an interpreter that has vllm-ascend, driven as support.worker says. vLLM and torch_npu, which need an NPU,
are stood in for: what vllm-ascend's transfer wants of them is below.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import zmq

from real.standins import stand_in
from support.worker import Server, Worker

HOST = "127.0.0.1"
ENGINES = {"prefill": "the prefill side", "decode": "the decode side"}


def make_zmq_path(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{host}:{port}"


def make_zmq_socket(ctx: zmq.Context[Any], path: str, socket_type: int, bind: bool) -> zmq.Socket[Any]:
    made = ctx.socket(socket_type)
    made.bind(path) if bind else made.connect(path)
    return made


ALONE = functools.partial(SimpleNamespace, rank_in_group=0, world_size=1)
VLLM: dict[str, dict[str, Any]] = {
    "vllm.distributed": {"get_pcp_group": ALONE},
    "vllm.distributed.parallel_state": {"get_pp_group": ALONE, "get_tensor_model_parallel_world_size": lambda: 1},
    "vllm.distributed.utils": {"get_pp_indices": lambda layers, rank, size: (0, layers)},
    "vllm.envs": {"VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": 480},
    "vllm.logger": {"logger": logging.getLogger("vllm")},
    "vllm.utils.network_utils": {
        "get_ip": lambda: HOST,
        "make_zmq_path": make_zmq_path,
        "make_zmq_socket": make_zmq_socket,
    },
}
stand_in(("vllm", "torch_npu"), VLLM)

from vllm_ascend.distributed.kv_transfer.kv_p2p import mooncake_connector as connector  # noqa: E402
from vllm_ascend.distributed.kv_transfer.utils.mooncake_transfer_engine import global_te  # noqa: E402


class VLLMAscend(Worker):
    """The operations: those of Worker, and vllm-ascend's. A KV cache is a list of layers of [address of K, of V]."""

    def set_up(
        self, mode: str, name: str, caches: list[list[int]], size: int, block: int, port: int, threads: int
    ) -> None:
        """Start the engine and register the caches, each of `size` bytes in blocks of `block`; then the threads: of a
        prefill side so many that answer, from the port on; of a decode side the one that receives."""
        self._engine = global_te.get_transfer_engine(name, None)
        pointers = [pointer for layer in caches for pointer in layer]
        global_te.register_buffer(pointers, [size] * len(pointers))
        lengths, scales = [[block] * len(layer) for layer in caches], [[1] * len(layer) for layer in caches]
        groups = {0: ({"kv_cache_spec_type": "FullAttentionSpec"}, list(range(len(caches))))}
        config = configuration(len(caches))
        if mode == "prefill":
            metadata = connector.MooncakeAgentMetadata(
                engine_id=ENGINES[mode],
                te_rpc_port=self._engine.get_rpc_port(),
                kv_group2layeridx=groups,
                block_size=1,
                kv_caches_base_addr=caches,
                block_size_scale=scales,
                num_blocks=size // block,
                block_lens=lengths,
                block_strides=lengths,
                local_ip=HOST,
            )
            self._senders = [self._sender(config, metadata, port + i) for i in range(threads)]
        else:
            self._receiver = connector.KVCacheRecvingThread(
                tp_rank=0,
                tp_size=1,
                _prefill_pp_size=1,
                engine=self._engine,
                local_engine_id=ENGINES[mode],
                local_handshake_port=port,
                side_channel_port=port,
                local_kv_caches_base_addr=caches,
                block_len_per_addr=lengths,
                block_stride_per_addr=lengths,
                vllm_config=config,
                kv_group2layeridx=groups,
                block_size_scale=scales,
            )
            self._receiver.start()

    def _sender(self, config: Any, metadata: Any, port: int) -> Any:
        ready = threading.Event()
        made = connector.KVCacheSendingThread(
            vllm_config=config,
            tp_rank=0,
            prefill_tp_size=1,
            local_engine_id=metadata.engine_id,
            side_channel_host=HOST,
            side_channel_port=port,
            metadata=metadata,
            ready_event=ready,
            kv_caches={},
            pcp_rank=0,
        )
        made.start()
        ready.wait()
        return made

    def expect(self, sender: int, request: str) -> None:
        """Let a prefill side's thread know of a request whose blocks will be fetched."""
        self._senders[sender].task_tracker.add_req_to_process(request)

    def fetched(self) -> list[list[str]]:
        """Return the requests whose blocks have been fetched since the last call, of each thread of a prefill side."""
        return [sorted(sender.get_and_clear_finished_requests()) for sender in self._senders]

    def fetch(self, requests: list[dict[str, Any]]) -> list[int]:
        """Fetch the blocks of requests, all at once, each {"id", "port", "local", "remote"}; return the blocks that
        could not be fetched."""
        for request in requests:
            self._receiver.task_tracker.add_req_to_process(request["id"])
        for request in requests:
            self._receiver.add_request(
                request_id=request["id"],
                remote_request_id=request["id"],
                local_block_ids=[request["local"]],
                remote_block_ids=[request["remote"]],
                group_pulls=[connector.GroupPull(0, 0, 1)],  # not the last one, after which an NPU reshapes the cache
                remote_engine_id=ENGINES["prefill"],
                remote_host=HOST,
                remote_handshake_port=request["port"],
                all_task_done=True,
            )
        finished: set[str] = set()
        while finished != {request["id"] for request in requests}:
            finished |= self._receiver.get_and_clear_finished_requests()
            time.sleep(0.005)
        return sorted(self._receiver.get_and_clear_invalid_block_ids())


def configuration(layers: int) -> Any:
    """Return what the threads read of vLLM's configuration."""
    model = SimpleNamespace(
        is_deepseek_mla=False,
        hf_text_config=SimpleNamespace(num_hidden_layers=layers, model_type="llama"),
    )
    return SimpleNamespace(
        speculative_config=None,
        model_config=model,
        cache_config=SimpleNamespace(block_size=1),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, decode_context_parallel_size=1, prefill_context_parallel_size=1
        ),
    )


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Server(VLLMAscend(), answers).serve(sys.stdin)


if __name__ == "__main__":
    main()
