"""Ctrl-C while a call waits, and the program's own signal handlers."""

from __future__ import annotations

import signal

import pytest

from support.inprocess import run_python

BLOCK = "peer.name, m.address, peer.address, peer.length"
WAITS = {
    "sync write": f"e.transfer_sync_write({BLOCK})",
    "batch read": "e.batch_transfer_sync_read(peer.name, [m.address], [peer.address], [peer.length])",
    "plan with one transfer": "plan(blocks(peer, 1), blocks(m, 0), 16).read(e, peer.name)",
    "plan with two transfers": "plan(blocks(m, 1), [blocks(peer, 0), blocks(peer, 1)], 16).write(e, 2 * [peer.name])",
    "wait for batches": f"e.get_batch_transfer_status([e.transfer_submit_write({BLOCK})])",
}

STUCK = """
peer = StuckPeer()
e, m = start(), Mapping(peer.length)
assert e.transfer_sync_write(peer.name, m.address, peer.address, 1) == 0
peer.stop()
"""

INTERRUPTED = (
    STUCK
    + """
sent = interrupt_soon()
try:
    WAIT
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0] < 15)
peer.go_on()
assert e.transfer_sync_write(peer.name, m.address, peer.address, 4096) == 0
peer.kill()
"""
)


@pytest.mark.each_path
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_ctrl_c_ends_a_wait_before_its_time_limit_and_the_engine_goes_on(wait: str) -> None:
    done = run_python(INTERRUPTED.replace("WAIT", wait))
    assert (done.returncode, done.stdout) == (0, "interrupted True\n"), done.stderr


def test_ctrl_c_ends_a_wait_for_a_peer_that_never_answers_the_handshake() -> None:
    done = run_python(
        """
import socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(5)
e, m = start(), Mapping(4096)
sent = interrupt_soon()
try:
    e.transfer_sync_write(f"127.0.0.1:{listener.getsockname()[1]}", m.address, m.address, 1)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0] < 15)
"""
    )
    assert (done.returncode, done.stdout) == (0, "interrupted True\n"), done.stderr


@pytest.mark.each_path
def test_a_handler_of_the_programs_runs_while_a_call_waits_and_the_call_goes_on() -> None:
    done = run_python(
        STUCK
        + """
def handler(number, frame):
    print("handled", flush=True)
    peer.go_on()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
print(e.transfer_sync_write(peer.name, m.address, peer.address, peer.length))
peer.kill()
"""
    )
    assert (done.returncode, done.stdout) == (0, "handled\n0\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_without_a_handler_has_its_usual_effect(number: signal.Signals) -> None:
    done = run_python(
        f"signal.signal({number:d}, signal.SIG_DFL); e = start(); os.kill(os.getpid(), {number:d}); time.sleep(5)"
    )
    assert done.returncode == -number, done.stderr


def test_a_crash_of_the_program_is_its_own() -> None:
    """A bad access in Python code ends the process by SIGSEGV, with faulthandler's report where that is on."""
    done = run_python("import ctypes, faulthandler; faulthandler.enable(); e = start(); ctypes.string_at(1)")
    assert done.returncode == -signal.SIGSEGV
    assert "string_at" in done.stderr


GONE = """
import ctypes, faulthandler
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mmap.restype = ctypes.c_void_p
NOTHING, READ_WRITE, FIXED_PRIVATE_ANONYMOUS = 0, 3, 0x32

def remap(access):
    # Not munmap(): another thread's memory could come to the same address.
    assert libc.mmap(memory.address, SIZE, access, FIXED_PRIVATE_ANONYMOUS, -1, 0) == memory.address

def transfer(way, local, remote):
    call = initiator.transfer_sync_write if way == "write" else initiator.transfer_sync_read
    return call(name(far), local, remote, SIZE)

near, far = start(), start()
initiator = INITIATOR
memory, good = Mapping(SIZE), Mapping(SIZE)
for each in (memory, good):
    assert far.register_memory(each.address, SIZE) == 0
for side in ("remote", "local"):
    for way in ("write", "read"):
        addresses = (memory.address, good.address) if side == "local" else (good.address, memory.address)
        faulthandler.disable()
        assert transfer(way, *addresses) == 0
        faulthandler.enable()
        remap(NOTHING)
        print(side, way, transfer(way, *addresses) < 0)
        remap(READ_WRITE)
        assert transfer(way, *addresses) == 0
"""


@pytest.mark.parametrize("size", [4096, 1 << 20])
@pytest.mark.parametrize("segment", ["a peer's by TCP", "a peer's on one host", "its own"])
def test_transfers_of_unmapped_memory_fail_also_when_faulthandler_has_the_signals(segment: str, size: int) -> None:
    program = GONE.replace("SIZE", str(size)).replace("INITIATOR", "far" if segment == "its own" else "near")
    done = run_python(program, KVFERRY_SAME_HOST=str(int(segment == "a peer's on one host")))
    lines = [f"{side} {way} True" for side in ("remote", "local") for way in ("write", "read")]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr
