"""Log lines, and logs that nobody reads."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

import kvferry
from kvferry import _log
from support.inprocess import environment, run_python

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


def test_no_call_waits_for_a_full_standard_error() -> None:
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


def test_lines_from_before_standard_error_was_full_are_written_and_dropped_ones_are_counted() -> None:
    done = run_python(f"""{STUCK}
import re
engine = start()
reading = stick()
for i in range(2000):
    TransferEngine = type(engine)
    assert TransferEngine().initialize(f"no:such:host:{{i}}", "P2PHANDSHAKE", "tcp", "") < 0
text = b""
while b" log lines were dropped" not in text:
    text += os.read(reading, 4096)
numbers = [int(n) for n in re.findall(rb"engine 'no:such:host:([0-9]+)'", text)]
assert numbers == list(range(len(numbers)))
assert int(re.search(rb"([0-9]+) log lines were dropped", text)[1]) == 2000 - len(numbers)
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del a, b", "os.kill(os.getpid(), signal.SIGINT)"])
def test_a_line_from_just_before_the_process_ends_is_written(end: str) -> None:
    done = run_python(f"""
a, b = start(), start()
memory = Mapping(1 << 16)
assert a.transfer_sync_write(name(b), memory.address, 4096, 100) < 0
{end}
""")
    assert "transfer failed" in done.stderr


def test_the_process_ends_only_after_its_lines_are_written() -> None:
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


def test_a_closed_standard_error_ends_no_call_and_no_process() -> None:
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


LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\S+\t(TRACE|DEBUG|INFO|WARN|ERROR)\tkvferry\t"


def test_a_message_of_pythons_is_a_line_of_the_librarys_log(logged: Callable[[], str]) -> None:
    """So that it is recognised where the host has no handler for it, as in vLLM."""
    _log.warning("%d of %s", 3, "five")
    _log.error("all 100%")
    warning, error, _ = logged().splitlines()
    assert re.fullmatch(f"{LINE}3 of five", warning) and "WARN" in warning
    assert re.fullmatch(f"{LINE}all 100%", error) and "ERROR" in error


def test_the_level_is_the_librarys(logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for level, expected in (("INFO", "iwe"), ("WARNING", "we"), ("ERROR", "e")):
        monkeypatch.setenv("MC_LOG_LEVEL", level)
        _log.info("i")
        _log.warning("w")
        _log.error("e")
        assert "".join(line.split("\t")[-1] for line in logged().splitlines()[:-1]) == expected


def test_whatever_the_text_one_message_is_one_line(logged: Callable[[], str]) -> None:
    _log.warning("%s", "one\ntwo\r\0three\udc80 \u20ac \x1b[1m")
    first, *rest = logged().splitlines()
    assert len(rest) == 1
    assert re.fullmatch(LINE + r"one two \\0three\\udc80 \u20ac  \[1m", first)


def test_messages_go_to_the_file_of_the_library(tmp_path: Path) -> None:
    done = run_python(
        """
from kvferry import _log
_log.warning("before any engine")
a = start()
assert a.transfer_sync_write("127.0.0.1:1", 8, 8, 8) < 0
os.makedirs(os.environ["MC_LOG_DIR"] + "/later")
os.environ["MC_LOG_DIR"] += "/later"
_log.warning("elsewhere")
print(os.getpid())
""",
        MC_LOG_DIR=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    file = f"kvferry.{done.stdout.strip()}.log"
    text = (tmp_path / file).read_text()
    assert "before any engine" in text and "transfer with 127.0.0.1:1: " in text
    assert "elsewhere" in (tmp_path / "later" / file).read_text()


def test_a_forked_child_logs_too() -> None:
    done = run_python("""
from kvferry import _log
a = start()
assert child(lambda: _log.warning("of the child") or start() and None) == 0
_log.warning("of the parent")
""")
    assert re.search(f"{LINE}of the child", done.stderr) and re.search(f"{LINE}of the parent", done.stderr)


def test_the_default_level_is_silent_while_nothing_is_wrong() -> None:
    done = run_python("""
from mooncake.engine import TransferEngine
for protocol in "tcp", "rdma":
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "") == 0
works()
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_engine_logs_once_at_info_that_kvferry_serves_mooncake_engine() -> None:
    done = run_python(
        "start(); start(); child(lambda: start() and None); import mooncake.engine; print(mooncake.engine.__file__)",
        MC_LOG_LEVEL="INFO",
    )
    lines = re.findall(f"{LINE}kvferry (\\S+) serves mooncake.engine, over TCP: (\\S+), with (\\S+)\n", done.stderr)
    assert len(lines) == 2, "the process and its child"
    level, version, module, library = lines[0]
    assert (level, version, module) == ("INFO", kvferry.__version__, done.stdout.strip())
    assert Path(library).name == "libtransfer_engine.so" and Path(library).exists()


def test_an_engine_describes_itself_at_info_without_a_secret() -> None:
    done = run_python(
        """
from support.wire import data_address
engine = start()
print(engine.get_rpc_port(), data_address(name(engine))[1])
""",
        MC_LOG_LEVEL="INFO",
        MC_RETRY_CNT="3",
        MC_SLICE_TIMEOUT="no number",
        MC_METADATA_HTTP_TOKEN="swordfish",
        KVFERRY_SAME_HOST="1",
    )
    found = re.search(f"{LINE}an engine has started\t(.*)\n", done.stderr)
    assert found is not None, done.stderr
    said = json.loads(found[2])
    handshake, data = done.stdout.split()
    assert said == {
        "version": kvferry.__version__,
        "name": f"127.0.0.1:{handshake}",
        "handshake": f"127.0.0.1:{handshake}",
        "data": f"127.0.0.1:{data}",
        "listening": "127.0.0.1",
        "security": "off",
        "metadata": "P2PHANDSHAKE",
        "settings": ["MC_LOG_LEVEL=INFO", "MC_RETRY_CNT=3", "MC_METADATA_HTTP_TOKEN=***"],
    }
    assert "swordfish" not in done.stderr


def test_a_password_in_the_metadata_string_is_never_logged() -> None:
    done = run_python(
        """
from mooncake.engine import TransferEngine
for metadata in "http://me:swordfish@127.0.0.1:1/metadata", "redis://me:swordfish@127.0.0.1:1", "etcd://127.0.0.1:1":
    assert TransferEngine().initialize("127.0.0.1", metadata, "tcp", "") < 0
""",
        MC_LOG_LEVEL="TRACE",
        KVFERRY_METADATA_CONNECT_TIMEOUT_MS="200",
        KVFERRY_METADATA_TIMEOUT_MS="200",
        KVFERRY_ETCD_PASSWORD="swordfish",
        KVFERRY_ETCD_USERNAME="me",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be made") == 3
    assert "swordfish" not in done.stderr


def test_a_variable_that_is_no_setting_is_warned_of_once_with_the_name_that_was_meant() -> None:
    done = run_python(
        "start(); start()", KVFERRY_MAX_SESSION="8", KVFERRY_LOG_LEVEL="INFO", KVFERRY_XYZZY="", KVFERRY_SIM_COST="1"
    )
    said = [line.split("\t")[-1] for line in done.stderr.splitlines()]
    assert sorted(said) == [
        "KVFERRY_LOG_LEVEL is no setting of kvferry and has no effect: did you mean MC_LOG_LEVEL?",
        "KVFERRY_MAX_SESSION is no setting of kvferry and has no effect: did you mean KVFERRY_MAX_SESSIONS?",
        "KVFERRY_XYZZY is no setting of kvferry and has no effect",
    ]
