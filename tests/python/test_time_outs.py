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


def test_a_peer_that_has_not_answered_the_handshake_in_time_is_named() -> None:
    done = run_python(
        SILENT + "e, m = start(), Mapping(4096)\nprint(e.transfer_sync_write(silent, m.address, m.address, 1))",
        MC_TRANSFER_TIMEOUT="5",
    )
    assert (done.returncode, done.stdout) == (0, "-1\n"), done.stderr
    assert "given up after 5 s (MC_TRANSFER_TIMEOUT" in done.stderr
    assert "it has not answered the handshake" in done.stderr
