"""kvferry serve and kvferry bench."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvferry as native
from kvferry import simulator
from kvferry._command import serve as serve_command
from kvferry._command import serving
from kvferry._command.bench_rounds import FOOTPRINT, MOST_BATCHES, Case
from kvferry._command.output import Output
from kvferry._command.pattern import PERIOD, PIECE, Pattern, wipe
from kvferry._engine import Engine
from kvferry._places import HostMemory, place
from support import venvs
from support.commands import result, run, running
from support.commands import serving as served
from support.inprocess import Node, environment
from support.peer import environment as bare_environment
from support.peers import unavailable
from support.process import until

SIMULATED = {
    "KVFERRY_ASCENDCL": simulator.library("npu"),
    "KVFERRY_CUDA": simulator.library("cuda"),
    "KVFERRY_SIM_DEVICES": "2",
    "KVFERRY_SIM_COST": "0",
}
SHORT = ("--seconds", "0.02")
SMALL = (*SHORT, "--size", "4K,64K", "--batch", "1,7")


@pytest.mark.each_path
def test_every_byte_is_checked_in_both_directions(path: str) -> None:
    with served("--size", "8M") as (peer, _):
        found = result("bench", peer, *SMALL, "--threads", "1,3")
    assert (found["kind"], found["memory"], found["peer_memory"]) == ("serve", "host", "host")
    cases = {(c["operation"], c["block_bytes"], c["batch"], c["threads"]) for c in found["cases"]}
    assert len(cases) == len(found["cases"]) == 2 * 2 * 2 * 2
    for case in found["cases"]:
        assert case["checked"] and case["bytes"] > 0 and 0 < case["p50_seconds"] <= case["p99_seconds"], case
        assert case["bytes"] == case["batches"] * case["batch"] * case["block_bytes"]
        assert {"tcp": "tcp", "samehost": "host"}[path] in case["path"].split("+")


@pytest.mark.parametrize(("here", "there"), [("npu:0", "host"), ("host", "cuda:1"), ("npu:1", "npu:0")])
def test_memory_of_devices_is_measured_and_checked(here: str, there: str) -> None:
    with served("--size", "2M", "--memory", there, **SIMULATED) as (peer, _):
        found = result("bench", peer, *SMALL, "--memory", here, **SIMULATED)
    assert (found["memory"], found["peer_memory"]) == (here, there)
    assert len(found["cases"]) == 8 and all(case["checked"] for case in found["cases"])


class Served:
    """A server of this process."""

    def __init__(self, size: int = 1 << 20, parts: int = 1) -> None:
        self.memory = HostMemory(size + serving.PAGE)
        self.server = serve_command.Server(self.memory, "host", parts, Output(quiet=True))
        self.engine = Engine("127.0.0.1", "P2PHANDSHAKE", "tcp", self.memory)
        assert self.engine.register(self.memory.address, self.memory.size) == 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.wait(serving.LOOK):
            self.server.answer(self.engine)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.engine.close()


@contextmanager
def served_here(**options: int) -> Iterator[Served]:
    made = Served(**options)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def spoiled(made: Served, at: int) -> Iterator[None]:
    """Something at the server goes on changing a byte."""
    ended = threading.Event()

    def spoil() -> None:
        while not ended.wait(0.0005):
            made.memory.write(bytes([made.memory.read(1, at)[0] ^ 0x55]), at)

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        yield
    finally:
        ended.set()
        spoiler.join()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_byte_that_is_wrong_is_found(operation: str) -> None:
    at = 98304 + 1696
    with served_here() as made, spoiled(made, at):
        status, _, err = run("bench", made.engine.name(), "--seconds", "30", "--op", operation, "--size", "4K")
    assert status == 1
    assert f"{operation} 4 KiB x 32: byte 1696 of the block at offset 98304 of the peer's memory is wrong" in err


def test_memory_of_another_program_is_only_read_unless_it_may_be_overwritten() -> None:
    node = Node(1 << 20)
    before = random.Random(1).randbytes(1 << 20)
    node.put(before)
    found = result("bench", node.name, *SHORT, "--size", "4K")
    assert {(case["operation"], case["checked"]) for case in found["cases"]} == {("read", False)}
    assert found["kind"] == "kvferry"
    status, _, err = run("bench", node.name, *SHORT, "--op", "read,write")
    assert status == 1 and "--yes-write" in err
    assert node.get(1 << 20) == before
    assert node.engine.get_notifies() == []
    found = result("bench", node.name, *SHORT, "--size", "4K", "--yes-write")
    assert {(case["operation"], case["checked"]) for case in found["cases"]} == {("read", True), ("write", True)}
    assert node.get(1 << 20) != before


def test_the_largest_buffer_that_a_bench_may_use_is_taken() -> None:
    with native.Engine("127.0.0.1") as other:
        kept = [other.register(bytearray(1 << 20), access="write")]
        status, _, err = run("bench", other.name, *SMALL)
        assert status == 1 and f"{other.name} has no memory that peers may read" in err
        status, out, err = run("doctor", other.name, *SHORT)
        assert status == 0 and "no memory that peers may read: no transfer is tried" in " ".join(out.split()), err

        kept.append(other.register(bytearray(512 << 10), access="read"))
        assert {case["operation"] for case in result("bench", other.name, *SMALL)["cases"]} == {"read"}
        status, _, err = run("bench", other.name, *SMALL, "--yes-write")
        assert status == 1 and "no memory that peers may both read and write" in err
        numbers = [buffer.nbytes for buffer in native.Descriptor.from_json(other.describe(*kept).json()).ranges]
        status, _, err = run("bench", other.name, *SMALL, "--buffer", str(numbers.index(1 << 20)))
        assert status == 1 and "lets peers only write buffer" in err


def test_a_peer_without_memory_and_one_that_is_not_there_are_errors() -> None:
    empty = Engine("127.0.0.1", "P2PHANDSHAKE", "tcp", None)
    assert run("bench", empty.name())[0::2] == (1, f"kvferry bench failed: {empty.name()} offers no memory\n")
    status, _, err = run("bench", "127.0.0.1:9")
    assert status == 1 and "127.0.0.1:9 cannot be asked what it offers" in err and "refused" in err


def test_a_case_that_does_not_fit_the_peers_memory_is_an_error() -> None:
    with served("--size", "1M") as (peer, _):
        status, _, err = run("bench", peer, "--size", "4K,64K", "--batch", "17")
    assert status == 1 and "takes 1088 KiB at a time, and the peer offers 1 MiB" in err


def test_benches_at_a_time_have_parts_of_their_own() -> None:
    arguments = "--size", "16K", "--op", "write", "--seconds", "0.3"
    with served("--size", "4M", "--clients", "3") as (peer, _):
        benches = [running("--json", "bench", peer, *arguments) for _ in range(3)]
        with benches[0] as a, benches[1] as b, benches[2] as c:
            for one in (a, b, c):
                one.line('"checked": true')
                assert one.process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_finds_no_free_part_says_what_to_do_and_a_part_comes_back(number: int) -> None:
    with served("--size", "4M") as (peer, server), running("bench", peer, "--seconds", "60", "--size", "4K") as first:
        server.line("bench .* begins")
        status, _, err = run("bench", peer)
        assert status == 1 and "serves other benches: start it with --clients 2" in err
        assert first.end(number) == 128 + number
        server.line("bench .* has ended")
        assert run("bench", peer, *SMALL)[0] == 0


def test_a_bench_that_was_killed_loses_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    with served_here() as made:
        with running("bench", made.engine.name(), "--seconds", "60", "--size", "4K"):
            until(lambda: made.server.notice.parts != (None,), 30, "a bench has a part")
        monkeypatch.setattr(serving, "LEASE", 0.0)
        until(lambda: made.server.notice.parts == (None,), 30, "the part is free")


def test_what_a_bench_has_written_is_replaced_for_the_next_one() -> None:
    with served("--size", "1M") as (peer, _):
        for operation in ("write", "read"):
            found = result("bench", peer, *SHORT, "--size", "4K", "--op", operation)
            assert [case["checked"] for case in found["cases"]] == [True]


def test_the_line_of_a_server_shows_no_password_of_its_store() -> None:
    assert serve_command.shown("http://10.0.0.9:8080/metadata") == "http://10.0.0.9:8080/metadata"
    for store in ("http://me:secret@10.0.0.9:8080/metadata", "http://10.0.0.9/?key=secret"):
        assert serve_command.shown(store) == "STORE"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_well_by_a_signal(number: int) -> None:
    with served("--size", "1M") as (peer, server):
        assert server.end(number) == 0
        assert server.process.stderr is not None and server.process.stderr.read() == ""
    assert run("bench", peer)[0] == 1


def test_a_server_tells_its_name_as_json() -> None:
    with running("--json", "serve", "--name", "127.0.0.1", "--size", "1M") as server:
        server.line("^}")
        told = json.loads("".join(server.printed))
        assert told == {"name": told["name"], "size": 1 << 20, "memory": "host", "parts": 1}
        assert run("bench", told["name"], *SMALL)[0] == 0


def test_a_peer_that_ends_meanwhile_is_an_error_that_names_it() -> None:
    arguments = "--op", "read", "--size", "4K", "--batch", "1", "--seconds", "60"
    with served("--size", "4M") as (peer, server), running("bench", peer, *arguments) as bench_:
        server.line("begins")
        server.process.kill()
        assert bench_.process.wait(60) == 1
        assert bench_.process.stderr is not None
        failed = r"^kvferry bench failed: (read 4 KiB x 1 failed|\S+ does not answer): .*" + re.escape(peer)
        assert re.search(failed, bench_.process.stderr.read(), re.M)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "failed"])
def test_a_bench_that_does_not_come_to_its_end_prints_one_value(number: signal.Signals, tmp_path: Path) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir(mode=0o700)
    folder = {"KVFERRY_SOCKET_DIR": str(sockets)}
    arguments = "--json", "bench", "--op", "read", "--size", "4K", "--batch", "1", "--seconds", "60"
    with served("--size", "4M", **folder) as (peer, server), running(*arguments, peer, **folder) as bench_:

        def moves() -> bool:  # faster than the bench looks at the notice
            return any(engine["read"] > 1 << 20 for engine in result("top", "-i", "0.2", **folder))

        until(moves, 60, "the bench has begun")
        (bench_ if number == signal.SIGINT else server).process.send_signal(number)
        assert bench_.process.wait(60) in (1, 130)
        bench_.line("^$")
        told = json.loads("".join(bench_.printed))
        assert told["kind"] == "serve" and told["error"].startswith("kvferry bench ")


def test_the_live_line_is_for_terminals_only() -> None:
    with served("--size", "4M") as (peer, _):
        arguments = "bench", peer, "--op", "read", "--size", "64K", "--seconds", "0.5"
        status, out, _ = run(*arguments)
        assert status == 0 and "\r" not in out and "\x1b" not in out
        shown = in_terminal(80, *arguments)
    line = re.search(r"\r(1/1 read 64 KiB x 32: [\d.]+ GB/s, [\d.]+ GB)\x1b\[K", shown)
    assert line, shown
    assert "every byte was checked" in shown


def in_terminal(columns: int, *arguments: str) -> str:
    """What the command prints on a terminal of that width."""
    here, there = pty.openpty()
    settings = {**environment(), "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen([sys.executable, "-m", "kvferry", *arguments], env=settings, stdout=there, stdin=there)
    os.close(there)
    shown = b""
    try:
        while data := os.read(here, 1 << 16):
            shown += data
    except OSError:  # the terminal has no writer any more
        pass
    finally:
        os.close(here)
        assert process.wait(60) == 0
    return shown.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--op", "erase"),
        ("--size", "0"),
        ("--size", "1K,"),
        ("--threads", "257"),
        ("--batch", "1,1048577"),
        ("--seconds", "-1"),
        ("--seconds", "nan"),
        ("--memory", "tpu:0"),
        ("--buffer", "-1"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: tuple[str, str]) -> None:
    status, _, err = run("bench", "127.0.0.1:9", *arguments)
    assert status == 2 and arguments[0] in err


def test_places_are_read() -> None:
    assert [place(text) for text in ("host", "npu", "cuda:3", "npu:00")] == ["host", "npu:0", "cuda:3", "npu:0"]
    for text in ("tpu", "npu:x", "npu:-1", "gpu:0", "host:0"):
        with pytest.raises(ValueError, match=re.escape(text)):
            place(text)


# Mooncake's own benchmark on the other side.


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        python = venvs.mooncake(venvs.VERSIONS[-1])
    except venvs.Unavailable as e:
        unavailable(str(e))
    (found,) = python.parents[1].glob("lib/python*/site-packages/mooncake/transfer_engine_bench")
    return found


MOONCAKES = ("--metadata_server=P2PHANDSHAKE", "--protocol=tcp", "--buffer_size=67108864")


def test_mooncakes_benchmark_is_a_peer_of_the_bench(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        target = subprocess.Popen(
            [program, "--mode=target", "--local_server_name=127.0.0.1", *MOONCAKES],
            env=bare_environment({}, ours=False),
            stderr=out,
            stdout=out,
        )
    try:
        name = re.compile(r"listening on (127\.0\.0\.1:\d+)[\s\S]*TcpTransport: listen on port[\s\S]*DRAM is used")
        until(lambda: name.search(log.read_text()) is not None, 60, "the benchmark of Mooncake listens")
        found_name = name.search(log.read_text())
        assert found_name is not None
        peer = found_name[1]
        found = result("bench", peer, *SMALL)
        assert found["kind"] == "mooncake"
        assert {(case["operation"], case["checked"]) for case in found["cases"]} == {("read", False)}
        found = result("bench", peer, *SMALL, "--threads", "2", "--yes-write")
        assert {(case["operation"], case["checked"]) for case in found["cases"]} == {("read", True), ("write", True)}
        assert target.poll() is None
    finally:
        target.kill()
        target.wait(60)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_the_server_is_a_target_of_mooncakes_benchmark(program: Path, operation: str) -> None:
    with served("--size", "128M") as (peer, _):
        done = subprocess.run(
            [
                *(program, "--mode=initiator", "--local_server_name=127.0.0.1", *MOONCAKES, f"--segment_id={peer}"),
                *(f"--operation={operation}", "--duration=1", "--threads=2", "--batch_size=16", "--block_size=65536"),
            ],
            env=bare_environment({}, ours=False),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"batch count [1-9]\d*", done.stderr), done.stderr
        found = result("bench", peer, *SHORT, "--op", "read", "--size", "4K")
        assert found["kind"] == "serve" and found["cases"][0]["checked"]


# The parts.


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_page_that_is_none_is_a_notice(data: bytes) -> None:
    assert serving.Notice.decode(data.ljust(serving.PAGE, b"\0")) is None
    head = serving.Notice(1 << 20, 7, "host", (None,)).encode()
    altered = head[:20] + data + head[20 + len(data) :]
    assert serving.Notice.decode(altered) is None or altered == head


@settings(deadline=None)
@given(st.text(max_size=100))
def test_no_text_that_is_none_is_a_request(text: str) -> None:
    assert serving.Request.decode(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '{"id": 1, "do": "begin"}',
        '{"id": "0123456789abcdef", "do": []}',
        '{"id": "/", "do": "end"}',
        "[" * 9999,
    ],
)
def test_requests_of_others_are_ignored(text: str) -> None:
    assert serving.Request.decode(text) is None


def test_notices_and_requests_are_read_as_they_were_written() -> None:
    notice = serving.Notice(1 << 30, 2**32 - 1, "npu:15", (None,) * 63 + (serving.new_id(),))
    assert len(notice.encode()) == serving.PAGE
    assert serving.Notice.decode(notice.encode()) == notice
    request = serving.Request(serving.new_id(), serving.BEGIN)
    assert serving.Request.decode(request.encode()) == request


@settings(deadline=None)
@given(st.integers(0, 3 * PERIOD), st.integers(1, 3 * PIECE // 2), st.data())
def test_a_pattern_tells_each_byte_that_differs(position: int, length: int, data: st.DataObject) -> None:
    memory, pattern = MEMORY, PATTERN
    wipe(memory, 0, memory.size)
    offset = data.draw(st.integers(0, memory.size - length))
    pattern.fill(memory, offset, length, position)
    assert pattern.differs(memory, offset, length, position) is None
    at = data.draw(st.integers(offset, offset + length - 1))
    memory.write(bytes([memory.read(1, at)[0] ^ 0x80]), at)
    assert pattern.differs(memory, offset, length, position) == at
    if length > 64:
        assert pattern.differs(memory, offset, length, position + 4096) is not None


MEMORY = HostMemory(2 << 20)
PATTERN = Pattern(3)


def test_a_case_takes_rounds_of_whole_batches() -> None:
    assert Case("read", 4096, 1, 1).batches(1 << 30) == MOST_BATCHES
    assert Case("read", 1 << 20, 32, 2).batches(1 << 30) == 1
    assert Case("read", 1 << 20, 8, 2).batches(1 << 30) == FOOTPRINT // (16 << 20)
    assert Case("read", 1 << 30, 1, 1).batches(1 << 30) == 1
    assert str(Case("write", 65536, 8, 4)) == "write 64 KiB x 8, 4 threads"


def test_a_notice_that_promises_more_than_the_buffer_is_none() -> None:
    node = Node(2 * serving.PAGE)
    node.put(serving.Notice(2 * serving.PAGE, 7, "host", (None,)).encode(), serving.PAGE)
    assert result("bench", node.name, *SHORT, "--size", "4K", "--batch", "1")["kind"] == "kvferry"
