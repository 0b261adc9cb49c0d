"""A drop-in for mooncake.engine: the same names, arguments and results, over kvferry's own engine.

Calls return codes as Mooncake's do. When a call fails, the log has the reason: on standard error, or where MC_LOG_DIR
says. A wrong kind of argument is a TypeError. Where Mooncake ends the process, as for an engine that was not
initialized, the call returns its failure value.

Any number of threads may call an engine. The GIL is not held while a call waits. A process that was forked after its
parent made an engine cannot use that engine; it makes its own.

Not here: SharedSegment, RpcInterface, CoroRPCInterface, ReceivedData, ReceivedTensor, create_rpc_client,
create_rpc_server, and the module mooncake.store.

SUPPORT_CUDA says whether this process may use a GPU now: each access to the flag looks for one.
"""

from __future__ import annotations

from kvferry import gpu
from kvferry._engine import Engine as InnerTransferEngine
from mooncake.engine._engine import TransferEngine
from mooncake.engine._scatter import ScatterTransferCompletionStatus, ScatterTransferTicket
from mooncake.engine._types import TransferNotify, TransferOpcode

Read = TransferOpcode.Read
Write = TransferOpcode.Write

SUPPORT_CUDA: bool
SUPPORT_EFA = False
SUPPORT_HIP = False
SUPPORT_INTRA_NVLINK = False
SUPPORT_MNNVL = False
SUPPORT_MULTI_PROTOCOL = False
SUPPORT_MUSA = False

__all__ = [
    "SUPPORT_CUDA",
    "SUPPORT_EFA",
    "SUPPORT_HIP",
    "SUPPORT_INTRA_NVLINK",
    "SUPPORT_MNNVL",
    "SUPPORT_MULTI_PROTOCOL",
    "SUPPORT_MUSA",
    "InnerTransferEngine",
    "Read",
    "ScatterTransferCompletionStatus",
    "ScatterTransferTicket",
    "TransferEngine",
    "TransferNotify",
    "TransferOpcode",
    "Write",
]

_ABSENT = (
    "SharedSegment",
    "RpcInterface",
    "CoroRPCInterface",
    "ReceivedData",
    "ReceivedTensor",
    "create_rpc_client",
    "create_rpc_server",
)


def __getattr__(name: str) -> bool:
    if name == "SUPPORT_CUDA":
        return gpu.available()
    if name in _ABSENT:
        raise AttributeError(f"mooncake.engine.{name} is not part of kvferry, which provides Mooncake's TransferEngine")
    raise AttributeError(f"module 'mooncake.engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "SUPPORT_CUDA"})
