"""Objects that own something outside of Python: released once, and an error afterwards."""

from __future__ import annotations

import socket
from typing import Callable

import pytest

from kvferry import simulator
from kvferry._command.main import make_parser
from kvferry._device import Runtime
from kvferry._engine import Engine
from kvferry._managed import Managed
from kvferry.gpu import CUDA
from kvferry.metadata_server import COMMAND, Server, options
from kvferry.npu import AscendCL


def test_it_is_released_once_by_close_by_with_or_with_the_last_reference() -> None:
    released: list[str] = []
    closed = Managed(lambda: released.append("closed"))
    assert not closed.closed
    closed.close()
    assert closed.closed
    with Managed(lambda: released.append("with")) as used:
        assert not used.closed
    dropped = Managed(lambda: released.append("dropped"))
    del dropped
    for owner in (closed, used):
        owner.close()
    del closed, used, owner
    assert released == ["closed", "with", "dropped"]


def test_with_does_not_take_one_that_is_closed() -> None:
    owner = Managed(lambda: None)
    owner.close()
    with pytest.raises(ValueError, match="this Managed is already closed"), owner:
        pass


@pytest.mark.parametrize(("kind", "runtime"), (("npu", AscendCL), ("cuda", CUDA)), ids=("npu", "gpu"))
def test_device_memory_that_is_freed_is_not_copied_to_or_from(kind: str, runtime: Callable[[str], Runtime]) -> None:
    with runtime(simulator.library(kind)).allocate(4096) as memory:
        memory.write(b"KV cache")
        assert memory.read(8) == b"KV cache"
    with pytest.raises(ValueError, match="this Memory is already closed"):
        memory.write(b"KV cache")
    with pytest.raises(ValueError, match="this Memory is already closed"):
        memory.read(8)


def test_an_engine_ends_with_its_block() -> None:
    with Engine("127.0.0.1", "P2PHANDSHAKE", None, None) as engine:
        assert engine.rpc_port() > 0
    assert engine.closed and engine.stuck is False
    assert engine.rpc_port() < 0


def listens(address: str) -> bool:
    host, port = address.split("/")[2].rsplit(":", 1)
    with socket.socket() as s:
        return s.connect_ex((host, int(port))) == 0


def test_a_metadata_server_ends_when_it_is_dropped_and_may_be_stopped_twice() -> None:
    chosen = options(make_parser([COMMAND]).parse_args(["metadata-server", "--host=127.0.0.1", "--port=0"]))
    dropped, stopped = Server(chosen), Server(chosen)
    addresses = dropped.address, stopped.address
    assert all(listens(address) for address in addresses)
    del dropped
    stopped.stop()
    stopped.stop()
    assert not any(listens(address) for address in addresses)
