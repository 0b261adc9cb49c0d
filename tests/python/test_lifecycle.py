"""Engines begin, are replaced, and end, also while other threads use them."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from typing import Callable

import pytest

from mooncake.engine import InnerTransferEngine, TransferEngine
from support.inprocess import HOST, Node, run_python
from support.peers import Peers
from support.process import stop

MIB = 1 << 20


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex((HOST, port)) == 0


def start(engine: TransferEngine, name: str = HOST, metadata: str = "P2PHANDSHAKE", protocol: str = "tcp") -> int:
    return engine.initialize(name, metadata, protocol, "")


def test_the_inner_engine_and_its_handle_are_there_once_it_was_initialized(near: Node) -> None:
    inner = near.engine.get_engine()
    assert isinstance(inner, InnerTransferEngine)
    assert near.engine.get_engine_ptr() == inner.handle != 0


@pytest.mark.parametrize("protocol", ["rdma", "efa", "nvlink", ""])
def test_a_strange_protocol_is_served_by_tcp_and_the_log_says_so_once(
    near: Node, protocol: str, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that programs ask for where nobody has chosen one are no reason for a warning."""
    monkeypatch.setenv("MC_LOG_LEVEL", "INFO")
    for _ in range(2):
        engine = TransferEngine()
        assert start(engine, protocol=protocol) == 0
        assert engine.transfer_sync_write(near.name, near.address, near.address, 100) == 0
    lines = [line for line in logged().splitlines() if repr(protocol) in line]
    assert len(lines) == 1
    assert ("INFO" if protocol == "rdma" else "WARN") in lines[0]
    assert f"kvferry has no protocol {protocol!r} and uses TCP instead" in lines[0]


@pytest.fixture
def no_ascendcl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have loaded simulated NPUs."""
    monkeypatch.setenv("KVFERRY_ASCENDCL", "/nowhere/libascendcl.so")


@pytest.mark.usefixtures("no_ascendcl")
@pytest.mark.parametrize(
    ("name", "metadata", "protocol"),
    [
        (HOST, "P2PHANDSHAKE", "xgmi"),
        (HOST, "P2PHANDSHAKE", "ascend"),
        (HOST, "nosuchscheme://127.0.0.1:1", "tcp"),
        (HOST, "", "tcp"),
        ("", "P2PHANDSHAKE", "tcp"),
        ("no.such.host.invalid:99999999", "P2PHANDSHAKE", "tcp"),
    ],
)
def test_an_engine_that_cannot_start_is_minus_one_and_a_good_start_works_afterwards(
    name: str, metadata: str, protocol: str, logged: Callable[[], str]
) -> None:
    engine = TransferEngine()
    assert start(engine, name, metadata, protocol) == -1
    assert "ERROR\tkvferry\tinitialize: " in logged()
    assert engine.get_engine() is None
    assert start(engine) == 0


def test_the_scheme_may_be_given_apart_and_peer_to_peer_wins() -> None:
    engine = TransferEngine()
    assert engine.initialize_ext(HOST, "P2PHANDSHAKE", "tcp", None, "etcd") == 0
    assert engine.initialize_ext(HOST, "127.0.0.1:1", "tcp", "", "nosuchscheme") == -1


@pytest.mark.each_path
def test_a_second_initialize_replaces_the_engine(near: Node) -> None:
    node = Node()
    managed = node.engine.allocate_managed_buffer(4096)
    batch = node.engine.transfer_submit_write(near.name, node.address, near.address, 1)
    port, handle = node.engine.get_rpc_port(), node.engine.get_engine_ptr()
    assert start(node.engine) == 0
    assert node.engine.get_engine_ptr() != handle
    assert node.engine.get_rpc_port() == port or not listens(port)
    assert node.engine.transfer_check_status(batch) == -1
    write = near.engine.transfer_sync_write
    assert write(node.name, near.address, managed, 4096) == 0, "managed buffers are registered again"
    assert write(node.name, near.address, node.address, 1) < 0, "other memory is not"
    assert node.engine.transfer_sync_write(near.name, managed, near.address, 4096) == 0
    assert node.engine.free_managed_buffer(managed, 4096) == 0


@pytest.mark.usefixtures("no_ascendcl")
def test_a_failed_second_initialize_leaves_an_engine_that_is_not_initialized() -> None:
    node = Node()
    assert start(node.engine, protocol="ascend") == -1
    assert (node.engine.get_rpc_port(), node.engine.get_engine()) == (-1, None)
    assert start(node.engine) == 0


def test_dropping_the_last_reference_ends_the_engine() -> None:
    node = Node()
    port = node.engine.get_rpc_port()
    assert listens(port)
    del node.engine
    assert not listens(port)


@pytest.mark.each_path
def test_an_engine_that_is_dropped_while_transfers_are_stuck_ends_before_their_time_limit(start_peer: Peers) -> None:
    peer = start_peer().create()
    memory = peer.memory(64 * MIB)
    node = Node(64 * MIB)
    assert node.engine.transfer_sync_write(peer.name, node.address, memory.address, 1) == 0
    stop(peer.pid)
    assert node.engine.transfer_submit_write(peer.name, node.address, memory.address, 64 * MIB)
    begin = time.monotonic()
    del node.engine
    assert time.monotonic() - begin < 15


@pytest.mark.each_path
def test_many_engines_leave_nothing_behind() -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def once() -> None:
        a, b = Node(4096), Node(4096)
        assert a.engine.transfer_sync_write(b.name, a.address, b.address, 4096) == 0

    for _ in range(5):
        once()
    descriptors, threads = held()
    for _ in range(20):
        once()
    deadline = time.monotonic() + 30
    while held()[0] > descriptors or held()[1] > threads + 8:
        assert time.monotonic() < deadline, (held(), descriptors, threads)
        time.sleep(0.1)


@pytest.mark.each_path
def test_threads_may_use_an_engine_while_another_one_replaces_it(far: Node) -> None:
    """The calls succeed or fail; nothing crashes, hangs or raises."""
    engine = TransferEngine()
    assert start(engine) == 0
    memory = Node(4096)
    stop = threading.Event()
    trouble: list[BaseException] = []
    done = [0]

    def use() -> None:
        try:
            while not stop.is_set():
                engine.transfer_sync_write(far.name, memory.address, far.address, 4096)
                batch = engine.transfer_submit_write(far.name, memory.address, far.address, 4096)
                engine.get_batch_transfer_status([batch])
                managed = engine.allocate_managed_buffer(10_000)
                engine.free_managed_buffer(managed, 10_000)
                engine.get_notifies()
                engine.send_probe(far.name)
                engine.get_rpc_port()
                done[0] += 1
        except BaseException as e:
            trouble.append(e)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        assert start(engine) == 0
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert trouble == []
    assert done[0] > 0
    assert engine.transfer_sync_write(far.name, memory.address, far.address, 4096) == 0


# How the interpreter ends. Each program must end by itself, in good order and in time.

LIMIT = 25  # seconds: less than what a transfer that is stuck may take

IN_FLIGHT = """
import atexit
peer = StuckPeer()
e, m = start(), Mapping(peer.length)
assert e.transfer_sync_write(peer.name, m.address, peer.address, 1) == 0
peer.stop()
def move():
    e.transfer_sync_write(peer.name, m.address, peer.address, peer.length)
def wait():
    e.get_batch_transfer_status([e.transfer_submit_write(peer.name, m.address, peer.address, peer.length)])
for action in (move, wait, move):
    threading.Thread(target=action, daemon=True).start()
time.sleep(0.3)
atexit.register(lambda: (peer.kill(), print("ended", flush=True)))
"""


def test_the_interpreter_ends_with_a_live_engine() -> None:
    done = run_python("e = start(); e.allocate_managed_buffer(1 << 20); print('ended')", limit=LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


@pytest.mark.each_path
@pytest.mark.parametrize("how", ["", "sys.exit(7)", "raise SystemExit(7)", "1 / 0"])
def test_the_interpreter_ends_with_transfers_in_flight_on_other_threads(how: str) -> None:
    done = run_python(IN_FLIGHT + how, limit=LIMIT)
    wanted = {"": 0, "1 / 0": 1}.get(how, 7)
    assert (done.returncode, done.stdout) == (wanted, "ended\n"), done.stderr
    assert "Fatal" not in done.stderr


@pytest.mark.each_path
def test_the_interpreter_ends_at_once_by_os_exit_with_transfers_in_flight() -> None:
    done = run_python(IN_FLIGHT + "peer.kill(); os._exit(3)", limit=LIMIT)
    assert done.returncode == 3, done.stderr


def test_an_engine_in_a_reference_cycle_and_one_in_a_module_are_ended_at_exit() -> None:
    done = run_python(
        """
class Holder: pass
h = Holder(); h.self = h; h.engine = start()
import json; json.engine = start()
print('ended')
""",
        limit=LIMIT,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
