"""The failure value of each call before initialize(), where Mooncake ends the process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mooncake.engine import TransferEngine, TransferOpcode

ONE = ("127.0.0.1:1", 0, 0, 0)
MANY = ("127.0.0.1:1", [0], [0], [0])
FAILURES: list[tuple[str, tuple[Any, ...], Any]] = [
    ("get_rpc_port", (), -1),
    ("get_engine", (), None),
    ("get_engine_ptr", (), 0),
    ("stats", (), None),
    ("get_notifies", (), []),
    ("get_first_buffer_address", ("127.0.0.1:1",), 0),
    ("send_probe", ("127.0.0.1:1",), -1),
    ("warmup_efa_segment", ("127.0.0.1:1",), 0),
    ("register_memory", (4096, 4096), -1),
    ("unregister_memory", (4096,), -1),
    ("batch_register_memory", ([4096], [4096]), -1),
    ("batch_unregister_memory", ([4096],), -1),
    ("allocate_managed_buffer", (1,), 0),
    ("free_managed_buffer", (4096, 1), -1),
    ("write_bytes_to_buffer", (4096, b"x", 1), -1),
    ("read_bytes_from_buffer", (4096, 1), b""),
    ("transfer_sync_write", ONE, -1),
    ("transfer_sync_read", ONE, -1),
    ("transfer_sync", (*ONE, TransferOpcode.Write), -1),
    ("transfer_submit_write", ONE, 0),
    ("transfer_check_status", (1,), -1),
    ("batch_transfer_sync_write", MANY, -1),
    ("batch_transfer_sync_read", MANY, -1),
    ("batch_transfer_sync", (*MANY, TransferOpcode.Read), -1),
    ("batch_transfer_async_write", MANY, 0),
    ("batch_transfer_async_read", MANY, 0),
    ("batch_transfer_async", (*MANY, TransferOpcode.Read), 0),
    ("get_batch_transfer_status", ([1],), -1),
]


@pytest.mark.parametrize(("call", "arguments", "failure"), FAILURES, ids=[f[0] for f in FAILURES])
def test_the_failure_value(fresh_engine: TransferEngine, call: str, arguments: tuple[Any, ...], failure: Any) -> None:
    assert getattr(fresh_engine, call)(*arguments) == failure


def test_the_topology_needs_no_initialize(fresh_engine: TransferEngine) -> None:
    assert json.loads(fresh_engine.get_local_topology())
