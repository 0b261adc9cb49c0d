"""vLLM's server, for processes that are forked where it has been imported; see forks.py."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any, Optional

import torch
import vllm.model_executor.models.llama
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker  # noqa: F401 (so that no server has to)
from vllm.entrypoints.launchers.api_server import entry

from real import hosts

NETWORK = "KVFERRY_TESTS_NETWORK"

get_context = multiprocessing.get_context


def forking_context(method: Optional[str] = None) -> Any:
    """Let the server fork its own processes, too: on CPUs vLLM asks for ones that import everything anew."""
    return get_context("fork" if method == "spawn" else method)


multiprocessing.get_context = forking_context

# MooncakeConnector asks for the current device, which PyTorch refuses to tell where there are only CPUs.
torch.accelerator.current_device_index = lambda: 0


def main() -> None:
    """Serve as sys.argv says, in the network namespace that NETWORK names."""
    os.dup2(2, 1)  # its log goes where errors go
    hosts.enter(os.environ.get(NETWORK, ""))
    entry.main()
