"""The error of a call whose time limit is over, and calls that a signal handler ends."""

from __future__ import annotations

import pytest

from support.inprocess import run_python

SILENT = """
import socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(50)
silent = f"127.0.0.1:{listener.getsockname()[1]}"
from mooncake.engine import TransferEngine
"""

CALLS = {
    "first buffer": "print(start().get_first_buffer_address(silent))",
    "probe": "print(start().send_probe(silent))",
    "HTTP store": 'print(TransferEngine().initialize("x", f"http://{silent}/metadata", "tcp", ""))',
    "etcd": 'print(TransferEngine().initialize("x", f"etcd://{silent}", "tcp", ""))',
    "Redis": 'print(TransferEngine().initialize("x", f"redis://{silent}", "tcp", ""))',
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_ctrl_c_ends_a_call_that_waits_for_a_silent_peer_or_store(call: str) -> None:
    done = run_python(
        SILENT
        + f"""
works()
sent = interrupt_soon()
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0] < 15)
works()
""",
    )
    assert (done.returncode, done.stdout) == (0, "interrupted True\n"), done.stderr


def test_a_call_that_asks_a_silent_peer_ends_by_itself_and_says_why() -> None:
    done = run_python(
        SILENT
        + """
e = start()
began = time.monotonic()
print(e.get_first_buffer_address(silent), e.send_probe(silent), time.monotonic() - began < 30)
""",
        MC_TRANSFER_TIMEOUT="5",
    )
    assert (done.returncode, done.stdout) == (0, "0 -102 True\n"), done.stderr
    assert "given up after 5 s (MC_TRANSFER_TIMEOUT" in done.stderr


STUCK = """
peer = StuckPeer()
e, m = start(), Mapping(peer.length)
assert e.transfer_sync_write(peer.name, m.address, peer.address, 1) == 0
peer.stop()
"""

BLOCK = "peer.name, m.address, peer.address, peer.length"
TRANSFERS = {
    "sync": f"e.transfer_sync_write({BLOCK})",
    "batch": f"e.get_batch_transfer_status([e.transfer_submit_write({BLOCK})])",
}


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=TRANSFERS)
def test_a_time_out_tells_the_whole_limit_its_setting_and_how_far_it_came(transfer: str) -> None:
    done = run_python(f"{STUCK}\nprint({transfer})\npeer.kill()", MC_TRANSFER_TIMEOUT="5")
    assert (done.returncode, done.stdout) == (0, "-1\n"), done.stderr
    assert "given up after 5.1 s (MC_TRANSFER_TIMEOUT, and 1 s for each GiB)" in done.stderr
    assert f" of {64 << 20} bytes are known to have arrived" in done.stderr
    assert "stands still" in done.stderr


SCATTER = "[m.address], [m.length], [peer.address], [m.length], [[0]], [[0]], [[m.length]]"


@pytest.mark.parametrize(
    "transfer",
    [*TRANSFERS.values(), f"e.scatter_transfer_sync_write_with_ticket(peer.name, {SCATTER})"],
    ids=[*TRANSFERS, "scatter"],
)
def test_a_time_out_names_the_peer_in_one_line(transfer: str) -> None:
    done = run_python(f"{STUCK}\n{transfer}\nprint(peer.name)\npeer.kill()", MC_TRANSFER_TIMEOUT="5")
    lines = [line for line in done.stderr.splitlines() if "given up after" in line]
    assert len(lines) == 1, done.stderr
    assert f"transfer with {done.stdout.strip()}: given up after 5.1 s (MC_TRANSFER_TIMEOUT" in lines[0]
    assert "bytes are known to have arrived" in lines[0]


def test_a_peer_that_has_not_answered_the_handshake_in_time_is_named() -> None:
    done = run_python(
        SILENT + "e, m = start(), Mapping(4096)\nprint(e.transfer_sync_write(silent, m.address, m.address, 1))",
        MC_TRANSFER_TIMEOUT="5",
    )
    assert (done.returncode, done.stdout) == (0, "-1\n"), done.stderr
    assert "given up after 5 s (MC_TRANSFER_TIMEOUT" in done.stderr
    assert "it has not answered the handshake" in done.stderr


NATIVE = """
import asyncio
from kvferry import Engine, Layout, TimedOut
def failure(call):
    try:
        call()
    except TimedOut as e:
        return e
e, memory = Engine(timeout=1), bytearray(1 << 16)
"""


@pytest.mark.parametrize(
    ("call", "limit"),
    [
        ("e.open(silent)", "the engine's timeout, and 1 s for each GiB"),
        ("asyncio.run(e.connect(silent))", "the engine's timeout, and 1 s for each GiB"),
        ("e.send(silent, b'').result()", "the engine's timeout, and 1 s for each GiB"),
        ("Peer(e, silent).write(memory, 4096, timeout=1).result()", "timeout"),
        ("Peer(default, silent).write(b'', 4096).result()", "MC_TRANSFER_TIMEOUT, and 1 s for each GiB"),
    ],
    ids=["open", "connect", "send", "write", "setting"],
)
def test_a_native_call_that_a_silent_peer_does_not_answer_says_so_and_names_its_limit(call: str, limit: str) -> None:
    done = run_python(
        SILENT
        + NATIVE
        + f"""
from kvferry import Peer
default = Engine()
error = failure(lambda: {call})
print(error.who == silent, error.why.replace(silent, "silent"))
""",
        MC_TRANSFER_TIMEOUT="5",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True its time limit is over, "), done.stderr
    assert done.stdout.endswith(f"s: silent has not answered the handshake; the limit is {limit}\n"), done.stdout
    assert "has not answered the handshake" in done.stderr, "the log names the peer, too"


def test_a_message_that_a_peer_does_not_accept_in_time_says_so() -> None:
    done = run_python(
        f"{STUCK}{NATIVE}peer.go_on()\ne.open(peer.name, timeout=30)\npeer.stop()\n"
        'print(failure(lambda: e.send(peer.name, b"", timeout=0.2).result()))\npeer.kill()'
    )
    assert "has not accepted the message; the limit is timeout\n" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "limit"), [("", "the engine's timeout"), (", timeout=1", "timeout")], ids=["engine", "call"]
)
def test_a_plan_has_the_time_limit_of_its_native_engine_and_names_it(arguments: str, limit: str) -> None:
    done = run_python(
        SILENT
        + NATIVE
        + f"""
class Array:
    __array_interface__ = {{"data": (4096, False), "shape": (4, 16, 8), "typestr": "|u1"}}
place = Layout(Array(), "block token dim").blocks([1])
error = failure(lambda: plan(place, place, 16).write(e, silent{arguments}))
print(error.who == silent, error.what, error.why.replace(silent, "silent"))
"""
    )
    assert (done.returncode, done.stdout) == (
        0,
        f"True write 128 bytes of a plan given up after 1 s ({limit}): silent: it has not answered the handshake\n",
    ), done.stderr


def test_an_engine_that_a_silent_store_keeps_from_starting_names_its_limit() -> None:
    done = run_python(
        SILENT
        + """
from kvferry import Engine, EngineError
try:
    Engine("x", metadata=f"http://{silent}/metadata", start_timeout=0.2)
except EngineError as e:
    print(e)
"""
    )
    assert "given up after 0.2 s (start_timeout): the metadata store" in done.stdout, done.stderr
