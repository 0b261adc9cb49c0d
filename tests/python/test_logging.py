"""What is logged, and logs that nobody reads."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kvferry import _log
from support.inprocess import environment, run_python
from support.process import until

STUCK = """
import fcntl
def stick():
    '''Make standard error a pipe that is full, and return the end to read it from.'''
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in 4096, 1:
        try:
            while True: os.write(writing, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writing, True)
    os.dup2(writing, 2)
    os.close(writing)
    return reading
"""


def test_nothing_waits_for_a_standard_error_that_nobody_reads() -> None:
    """Neither transfers that fail, which is logged, nor those that have nothing to do with them, nor the engine's end,
    nor that of the process."""
    done = run_python(f"""{STUCK}
a, b = start(), start()
memory = Mapping(1 << 16)
assert b.register_memory(memory.address, memory.length) == 0
reading = stick()
peer = StuckPeer()
for _ in range(3):
    assert a.transfer_sync_write(name(b), memory.address, 4096, 100) < 0  # the library logs that
    assert a.transfer_sync_write("127.0.0.1:1", memory.address, 4096, 100) < 0  # Python does
    assert a.transfer_sync_write(name(b), memory.address, memory.address + 4096, 100) == 0
    assert b.transfer_sync_write(peer.name, memory.address, peer.address, 100) == 0
works()
del a, b
peer.kill()
print("end", flush=True)
""")
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_what_was_logged_before_it_stuck_is_there_in_the_end_and_what_was_dropped_is_told() -> None:
    done = run_python(f"""{STUCK}
import re
engine = start()
reading = stick()
for i in range(5000):
    TransferEngine = type(engine)
    assert TransferEngine().initialize(f"no:such:host:{{i}}", "P2PHANDSHAKE", "tcp", "") < 0
text = b""
while b"dropped" not in text:
    text += os.read(reading, 4096)
numbers = [int(n) for n in re.findall(rb"engine 'no:such:host:([0-9]+)'", text)]
assert numbers == list(range(len(numbers)))
assert int(re.search(rb"([0-9]+) messages were dropped", text)[1]) == 5000 - len(numbers)
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del a, b", "os.kill(os.getpid(), signal.SIGINT)"])
def test_what_was_logged_just_before_the_process_ends_is_written(end: str) -> None:
    done = run_python(f"""
a, b = start(), start()
memory = Mapping(1 << 16)
assert a.transfer_sync_write(name(b), memory.address, 4096, 100) < 0
{end}
""")
    assert "transfer failed" in done.stderr


def test_the_process_ends_only_when_what_was_logged_is_written() -> None:
    """Within a second, as the tests above have it."""
    program = f"""from support.programs import *
{STUCK.replace("os.pipe()", "0, os.dup(2)")}
a, b = start(), start()
memory = Mapping(1 << 16)
stick()
assert a.transfer_sync_write(name(b), memory.address, 4096, 100) < 0
print("logged", flush=True)
os.close(1)
ctypes.CDLL(None).exit(0)  # with the engines alive
"""
    with subprocess.Popen(
        [sys.executable, "-c", f"import ctypes\n{program}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "logged\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # long enough to end, if it did not wait
        assert "transfer failed" in process.stderr.read()
    assert process.returncode == 0


def test_a_reader_of_standard_error_that_is_gone_harms_nobody() -> None:
    done = run_python("""
a, b = start(), start()
memory = Mapping(1 << 16)
assert b.register_memory(memory.address, memory.length) == 0
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 2)
assert a.transfer_sync_write(name(b), memory.address, 4096, 100) < 0
assert a.transfer_sync_write(name(b), memory.address, memory.address + 4096, 100) == 0
works()
""")
    assert done.returncode == 0


def test_a_child_that_is_forked_while_the_log_is_stuck_ends() -> None:
    done = run_python(
        f"""{STUCK}
a, b = start(), start()
memory = Mapping(1 << 16)
reading = stick()
assert a.transfer_sync_write(name(b), memory.address, 4096, 100) < 0
assert a.transfer_sync_write("127.0.0.1:1", memory.address, 4096, 100) < 0
pid = os.fork()
if pid == 0:
    sys.exit(0)  # as any program ends
assert os.waitpid(pid, 0)[1] == 0
assert child(lambda: start() and None) == 0
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert done.returncode == 0, done.stderr


class Blocking(logging.Handler):
    """Keeps whoever calls it until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.released.wait()
        self.texts.append(record.getMessage())


@pytest.fixture
def handler() -> Iterator[Blocking]:
    made = Blocking()
    logging.getLogger("kvferry").addHandler(made)
    yield made
    made.released.set()
    logging.getLogger("kvferry").removeHandler(made)


def test_a_handler_that_does_not_return_gets_the_messages_in_order_later(handler: Blocking) -> None:
    more = _log.MOST_QUEUED + 50
    for i in range(more):
        _log.warning("message %d", i)
    handler.released.set()
    until(lambda: bool(handler.texts) and "dropped" in handler.texts[-1], 10, "the messages that were dropped are told")
    *kept, told = handler.texts
    assert kept == [f"message {i}" for i in range(len(kept))]
    assert told.startswith(f"{more - len(kept)} messages were dropped")


def test_a_handler_that_returns_has_a_message_before_the_call_that_logs_it_returns(handler: Blocking) -> None:
    handler.released.set()
    for i in range(100):
        _log.error("message %d", i)
        assert handler.texts[-1] == f"message {i}"


def test_a_handler_that_fails_is_no_matter_of_the_caller(
    handler: Blocking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(handler, "emit", lambda record: 1 // 0)
    _log.warning("one")
    monkeypatch.undo()
    handler.released.set()
    _log.warning("two")
    assert handler.texts == ["two"]
    assert [f.exc_type for f in failures] == [ZeroDivisionError]
