"""Mooncake's store in a process whose mooncake.engine is kvferry's."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ports import free_ports
from support.process import until

from .environments import Environment, Wheels

PROGRAM = """
import sys
import mooncake.store
from mooncake.engine import TransferEngine
engine, store = TransferEngine(), mooncake.store.MooncakeDistributedStore()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
setup = "127.0.0.1", "P2PHANDSHAKE", 64 << 20, 16 << 20, "tcp", "", sys.argv[1]
for _ in range(2):
    try:
        store.setup(*setup, engine.get_engine())
    except (RuntimeError, TypeError) as e:
        print("refused:", e)
assert store.setup(*setup) == 0
text = b"0123456789" * 1000
assert store.put("key", text) == 0 and store.get("key") == text
peer = TransferEngine()
assert peer.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
here, there = engine.allocate_managed_buffer(4096), peer.allocate_managed_buffer(4096)
assert engine.transfer_sync_write(f"127.0.0.1:{peer.get_rpc_port()}", here, there, 4096) == 0
store.close()
print("both work")
"""


def answers(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def environment(wheels: Wheels, tmp_path: Path) -> Environment:
    """An environment with both."""
    made = Environment(wheels, tmp_path / "environment")
    for package in ("mooncake", "kvferry"):
        made.install(package)
    return made


@pytest.fixture
def master(environment: Environment) -> Iterator[str]:
    """The address of a running master of the store."""
    port, metrics = free_ports(2)
    program = str(environment.packages / "mooncake" / "mooncake_master")
    options = [f"--rpc_port={port}", f"--metrics_port={metrics}"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(port), 60, "the store's master answers")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def test_the_store_refuses_kvferrys_engine_with_a_warning_that_says_the_way_out_and_that_works(
    environment: Environment, master: str, tmp_path: Path
) -> None:
    """docs/compatibility.md quotes the store's error."""
    said = environment.run(PROGRAM, master, MC_LOG_DIR=str(tmp_path)).splitlines()
    assert said == [
        *2 * ["refused: Unable to cast Python instance of type <class 'kvferry._engine.Engine'> to C++ type"
              " 'std::shared_ptr<mooncake::TransferEngine>'"],
        "both work",
    ]  # fmt: skip
    log = next(tmp_path.glob("kvferry.*.log")).read_text()
    assert log.count("get_engine: this is kvferry's engine, which mooncake.store cannot use") == 1
