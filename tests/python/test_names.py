"""Names as clients write them: with IPv6 hosts, and without a port."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from mooncake.engine import TransferEngine
from support.inprocess import Node
from support.peers import unavailable


@pytest.fixture(scope="module", autouse=True)
def ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        unavailable("::1 cannot be used here: enable IPv6 on the loopback interface")


@pytest.fixture(scope="module")
def far6() -> TransferEngine:
    engine = TransferEngine()
    assert engine.initialize("::1", "P2PHANDSHAKE", "tcp", "") == 0
    return engine


@pytest.mark.parametrize("form", ["[::1]:{}", "::1:{}", "0:0:0:0:0:0:0:1:{}", "[::1]:{}:npu_0", "::1:{}:npu_0"])
def test_a_peer_is_reached_by_every_form_of_its_name(near: Node, far6: TransferEngine, form: str) -> None:
    name = form.format(far6.get_rpc_port())
    there = far6.allocate_managed_buffer(4096)
    near.put(form.encode())
    assert near.engine.transfer_sync_write(name, near.address, there, len(form)) == 0
    assert far6.read_bytes_from_buffer(there, len(form)) == form.encode()
    assert near.engine.send_probe(name) == 0
    assert near.engine.get_first_buffer_address(name) != 0
    assert far6.free_managed_buffer(there, 4096) == 0


@pytest.mark.parametrize("name", ["::1", "[::1]", "::1:15858", "[::1]:15858", "::1:15858:npu_3"])
def test_every_form_is_a_local_name(name: str) -> None:
    assert TransferEngine().initialize(name, "P2PHANDSHAKE", "tcp", "") == 0


def test_a_name_that_may_contain_a_port_is_warned_of(near: Node, logged: Callable[[], str]) -> None:
    assert near.engine.transfer_sync_write("::1:1585", near.address, near.address, 1) == -1
    assert "put the address in brackets" in logged()


def test_a_url_as_a_name_is_logged_without_its_password(near: Node, logged: Callable[[], str]) -> None:
    name = "http://me:secret@127.0.0.1:1"
    assert near.engine.transfer_sync_write(name, near.address, near.address, 1) == -1
    assert near.engine.get_first_buffer_address(name) == 0
    text = logged()
    assert text.count("is a URL") == 2 and "secret" not in text


def test_a_name_without_a_port_says_which_port_was_taken(near: Node, logged: Callable[[], str]) -> None:
    assert near.engine.transfer_sync_write("127.0.0.2", near.address, near.address, 1) == -1
    assert '"127.0.0.2" has no port, so that of MC_HANDSHAKE_PORT was taken' in logged()
