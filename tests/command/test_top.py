"""kvferry top."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvferry._command import top, top_sources
from kvferry._command.terminal import HOME as FRAME
from kvferry._command.terminal import OTHER_SCREEN, USUAL_SCREEN, width
from kvferry._command.texts import age, duration
from kvferry._command.top_rates import EngineRates, PeerRates, rates
from kvferry._command.top_sources import Reading, Source
from kvferry.stats import Stats
from support.commands import result, run, running
from support.commands import serving as served
from support.inprocess import Node
from support.ports import free_ports
from support.process import until
from support.terminals import Terminal

QUICK = "-i", "0.2"


@pytest.fixture
def sockets(tmp_path: Path) -> str:
    """A folder for the sockets of engines, whose path is short enough for one."""
    path = tmp_path / "s"
    path.mkdir(mode=0o700)
    return str(path)


def test_engines_of_this_user_are_shown_with_their_rates(sockets: str) -> None:
    settings = {"KVFERRY_SOCKET_DIR": sockets}
    with served("--size", "4M", **settings) as (peer, server):
        arguments = "bench", peer, "--op", "read", "--size", "64K", "--seconds", "60"
        with running(*arguments, **settings) as bench:
            server.line("begins")
            seen: list[dict[str, Any]] = []

            def both_move() -> bool:
                seen[:] = result("top", *QUICK, **settings)
                return len(seen) == 2 and seen[0]["read"] > 0 and seen[1]["served_read"] > 0

            until(both_move, 60, "both engines show their rates")
            reader, target = seen
            assert (reader["pid"], target["pid"]) == (bench.process.pid, server.process.pid)
            assert target["engine"] == peer
            (of_reader,) = reader["peers"]
            assert (of_reader["peer"], of_reader["role"]) == (peer, "initiator")
            assert [of_target["role"] for of_target in target["peers"]] == ["target"]
            assert reader["batches"] > 0 and 0 < reader["p50"] <= reader["p99"]
            assert reader["failures"] == target["failures"] == 0

            status, out, err = run("top", "--peers", *QUICK, **settings)
            assert (status, err) == (0, "") and "\x1b" not in out and "\r" not in out
            lines = out.splitlines()
            assert lines[0].split()[:6] == ["ENGINE", "PID", "UP", "OUT", "MB/s", "IN"]
            assert len(lines) == 5
            assert any(re.match(rf"  > {peer} +[\d.]+ +[\d.]+", line) for line in lines)
            assert any(re.match(r"  < (localhost|127.0.0.1) +[\d.]+ +[\d.]+", line) for line in lines)
            assert len(run("-q", "top", *QUICK, **settings)[1].splitlines()) == 2


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_engines_at_a_given_address_are_shown(kind: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}" if kind == "port" else f"unix:{tmp_path}/x.sock"
    settings = {"KVFERRY_METRICS_LISTEN": address, "KVFERRY_SOCKET_DIR": "off"}
    with served("--size", "1M", **settings) as (peer, _):
        (engine,) = result("top", address, *QUICK)
        assert (engine["engine"], engine["source"], engine["pid"]) == (peer, address, None)


def test_an_address_that_does_not_answer_is_a_failure_that_names_it() -> None:
    status, out, err = run("top", "127.0.0.1:9", *QUICK)
    assert status == 1 and out == "no engines\n"
    assert err == "127.0.0.1:9 does not say what its engines do: [Errno 111] Connection refused\n"


def test_without_engines_it_says_where_it_has_looked(sockets: str) -> None:
    status, out, err = run("top", *QUICK, KVFERRY_SOCKET_DIR=sockets)
    assert (status, err) == (0, "") and sockets in out
    assert result("top", *QUICK, KVFERRY_SOCKET_DIR=sockets) == []
    assert "KVFERRY_SOCKET_DIR is off" in run("top", *QUICK, KVFERRY_SOCKET_DIR="off")[1]
    assert result("top", *QUICK, KVFERRY_SOCKET_DIR=f"{sockets}/none") == []


@pytest.mark.parametrize("ignored", ["", "folder", "./folder", "OFF", "/tmp/a\nb"])
def test_a_folder_that_engines_ignore_is_ignored(ignored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_SOCKET_DIR", "auto")
    usual = top_sources.folder()
    monkeypatch.setenv("KVFERRY_SOCKET_DIR", ignored)
    assert top_sources.folder() == usual


def test_sockets_that_were_left_behind_are_passed_over(sockets: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{sockets}/7-00000000.sock")
    Path(sockets, "8-00000000.sock").write_text("no socket")
    status, out, err = run("top", *QUICK, KVFERRY_SOCKET_DIR=sockets)
    assert (status, out, err) == (0, "no engines\n", "")


def test_a_folder_that_others_can_open_is_not_used(sockets: str) -> None:
    os.chmod(sockets, 0o755)
    status, _, err = run("top", *QUICK, KVFERRY_SOCKET_DIR=sockets)
    assert status == 1 and f"{sockets} is no folder of this user alone" in err


def test_a_folder_that_is_a_link_is_not_used(sockets: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(sockets)
    assert run("top", *QUICK, KVFERRY_SOCKET_DIR=str(link))[0] == 1


# What strangers may answer.


@contextmanager
def answering(body: bytes, code: int = 200) -> Iterator[str]:
    """A server that answers everything so: its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def stats() -> Stats:
    """What an engine that has moved something says."""
    far, near = Node(4096), Node(4096)
    assert near.engine.transfer_sync_write(far.name, near.address, far.address, 4096) == 0
    found = near.engine.stats()
    assert found is not None
    return found


def altered(stats: Stats, **values: Any) -> bytes:
    return json.dumps([{**stats, **values}]).encode()


@pytest.mark.parametrize("begins", [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 "])
def test_an_answer_that_comes_too_slowly_is_given_up(begins: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_sources, "PATIENCE", 0.3)
    given_up = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(begins)
            for _ in range(100):
                if given_up.wait(0.05):
                    return
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        (reading,) = top_sources.read_all([Source(f"127.0.0.1:{listener.getsockname()[1]}", None)])
        given_up.set()
        thread.join()
    assert reading.problem == "timed out"


def test_answers_that_are_none_are_failures_and_break_nothing(stats: Stats) -> None:
    bodies = [b"", b"{}", b"[{}]", b"[1]", b"nonsense", b"[" * 100_000, b"\xff", altered(stats)[:-20]]
    bodies += [altered(stats, uptime_seconds=value) for value in (-1, "1", None, 2**70, float("nan"), float("inf"))]
    bodies += [altered(stats, initiator=[{}]), altered(stats, batches=[]), altered(stats, process={"threads": 1})]
    for body in bodies:
        with answering(body) as address:
            status, out, err = run("top", address, "-i", "0.01")
        assert status == 1 and out == "no engines\n", body[:80]
        assert err.startswith(f"{address} does not say what its engines do: ") and err.count("\n") == 1, err
    with answering(b"[]", 404) as address:
        assert "it answers 404 Not Found" in run("top", address, "-i", "0.01")[2]
    with answering(b"[]") as address:
        assert run("top", address, "-i", "0.01") == (0, "no engines\n", "")


def test_a_terminal_gets_no_control_characters_of_strangers(stats: Stats) -> None:
    with answering(altered(stats, engine="a\x1b[2Jb\r\n")) as address:
        status, out, _ = run("top", address, "-i", "0.01")
    assert status == 0 and "\x1b" not in out and "\r" not in out and "a?[2Jb??" in out


def test_an_answer_that_has_more_is_shown(stats: Stats) -> None:
    with answering(altered(stats, of_a_later_version={})) as address:
        assert len(result("top", address, "-i", "0.01")) == 1


# Terminals.


@contextmanager
def in_terminal(columns: int, rows: int, *arguments: str, **settings: str) -> Iterator[Terminal]:
    """The command on a terminal of that size."""
    with Terminal(columns, rows, sys.executable, "-m", "kvferry", *arguments, **settings) as terminal:
        yield terminal


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_is_written_over_and_lines_fit(columns: int, sockets: str) -> None:
    arguments, settings = ("top", "--peers", "-i", "0.1"), {"KVFERRY_SOCKET_DIR": sockets}
    with served("--size", "1M", **settings), in_terminal(columns, 24, *arguments, **settings) as terminal:
        terminal.until(lambda shown: shown.count(FRAME) >= 4)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0
    first, *frames = terminal.shown.split(FRAME)
    assert first == OTHER_SCREEN and "the first rates come in 0.1 s" in frames[0]
    *frames, last = frames
    within, after = last.split(USUAL_SCREEN)
    for frame in (*frames, within, after):
        assert max(map(len, lines_of(frame))) <= columns
    assert all("engines: 1, out 0.0 MB/s" in frame for frame in frames[1:])
    assert ("RETRIES" in last) == (columns == 200)
    assert lines_of(after)[:-1] == lines_of(within), "what was shown last stays"


def lines_of(frame: str) -> list[str]:
    return re.sub("\x1b\\[[KJ]", "", frame).replace("^C", "").replace("\r", "").split("\n")


def test_another_size_of_the_window_is_drawn_at_once(sockets: str) -> None:
    arguments, settings = ("top", "-i", "0.5"), {"KVFERRY_SOCKET_DIR": sockets}
    with served("--size", "1M", **settings), in_terminal(200, 24, *arguments, **settings) as terminal:
        terminal.until(lambda shown: "RETRIES" in shown)
        terminal.resize(60, 5)
        terminal.until(lambda shown: max(map(len, lines_of(shown.split(FRAME)[-1]))) <= 60)


def test_what_ends_it_leaves_the_usual_screen(sockets: str) -> None:
    with in_terminal(80, 24, "top", "-i", "600", KVFERRY_SOCKET_DIR=sockets) as terminal:
        terminal.until(lambda shown: "the first rates come in 600 s" in shown)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 0
        assert USUAL_SCREEN in terminal.shown


@pytest.mark.parametrize("command", ["top", "bench"])
def test_a_dumb_terminal_gets_lines_alone(command: str, sockets: str) -> None:
    with served("--size", "1M", KVFERRY_SOCKET_DIR=sockets) as (peer, _):
        arguments = {"top": ("-i", "0.1"), "bench": (peer, "--seconds", "0.1", "--size", "4K", "--batch", "2")}
        settings = {"TERM": "dumb", "KVFERRY_SOCKET_DIR": sockets}
        with in_terminal(80, 24, command, *arguments[command], **settings) as terminal:
            assert terminal.end() == 0
            assert "\x1b" not in terminal.shown and "\r" not in terminal.shown.replace("\r\n", "")
            assert max(map(len, lines_of(terminal.shown))) <= 80
            assert {"top": "OUT MB/s", "bench": "every byte was checked"}[command] in terminal.shown


def test_names_of_wide_letters_leave_the_columns_in_line() -> None:
    table = top.lines([engine_rates("節点一"), engine_rates("cafe\u0301"), engine_rates("node-1")], False, 60)
    assert len({width(line) for line in table}) == 1
    assert len({width(line.split("12345")[0]) for line in table[1:]}) == 1
    assert all(width(line) <= 30 for line in top.lines([engine_rates("節" * 50)], False, 30))


def test_a_low_terminal_says_how_many_lines_it_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [engine_rates(f"engine {number}") for number in range(20)]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "10")
    shown = top.screen(engines, [], argparse.Namespace(peers=False), False)
    assert len(shown) == 9 and shown[-1] == "(14 more lines)"


def engine_rates(name: str, **values: Any) -> EngineRates:
    peer = PeerRates("10.0.0.2:15000", "initiator", 1e9, 2e9, 3 << 20, 4 << 20, 5, 6, 7)
    numbers = dict.fromkeys(EngineRates._fields, 12345)
    return EngineRates(**{**numbers, "engine": name, "identity": "i", "source": "s", "peers": [peer], **values})


def test_the_table_has_as_many_columns_as_fit_and_the_name_always() -> None:
    engines = [engine_rates("10.0.0.1:15000"), engine_rates("x" * 100, p99=None, pid=None)]
    widths = []
    for columns in range(20, 260, 7):
        table = top.lines(engines, True, columns)
        assert len(table) == 5 and max(map(len, table)) <= columns
        assert table[0].startswith("ENGINE") and table[2].startswith("  > 10.0.0.2:15000"[:columns])
        widths.append(len(table[0].split()))
    assert widths == sorted(widths)
    assert len(top.lines(engines, False, None)) == 3


# Rates.


def reading(at: float, *engines: Any) -> Reading:
    return Reading(Source("unix:/x", 7), at, list(engines), None)


def moved(stats: Stats, **values: Any) -> Any:
    (peer,) = stats["initiator"]
    return {**stats, "initiator": [{**peer, **values}]}


def test_rates_are_what_was_moved_between_two_readings(stats: Stats) -> None:
    later = moved(
        stats, write={"requests": 9, "bytes": {"tcp": 4096 + 5000, "host": 1000, "local": 0}}, queued_bytes=77
    )
    later["failures"] = {"stalled": 3}
    (engine,) = rates([reading(100, stats)], [reading(102, later)])
    before = sum(stats["initiator"][0]["write"]["bytes"].values())
    assert engine.write == engine.out == (4096 + 5000 + 1000 - before) / 2
    assert (engine.read, engine.into, engine.queued, engine.failures, engine.new_failures) == (0, 0, 77, 3, 3)
    assert engine.batches == 0 and engine.p50 is None


def test_an_engine_that_is_new_has_the_rates_of_its_life(stats: Stats) -> None:
    (engine,) = rates([], [reading(5, {**stats, "uptime_seconds": 4.0})])
    assert engine.write == 4096 / 4 and engine.batches == 1 / 4
    assert engine.p99 is not None and engine.p99 > 0
    other: Any = {**stats, "identity": "another incarnation", "uptime_seconds": 4.0}
    assert rates([reading(1, stats)], [reading(5, other)])[0].write == 4096 / 4


def test_a_peer_that_was_forgotten_has_no_negative_rate(stats: Stats) -> None:
    earlier = moved(stats, write={"requests": 9, "bytes": {"tcp": 1 << 40}})
    assert rates([reading(1, earlier)], [reading(2, stats)])[0].write == 0


def test_the_busiest_engine_is_first(stats: Stats) -> None:
    lazy: Any = {**stats, "identity": "2", "engine": "a lazy one"}
    busy = moved(stats, write={"requests": 9, "bytes": {"tcp": 1 << 40}})
    found = rates([reading(1, stats, lazy)], [reading(2, lazy, busy)])
    assert [engine.engine for engine in found] == [stats["engine"], "a lazy one"]


def test_durations_and_ages_have_one_unit() -> None:
    assert [duration(value) for value in (None, 2e-6, 0.00102, 0.0328, 1.5)] == ["-", "2us", "1.02ms", "32.8ms", "1.5s"]
    assert [age(value) for value in (0.4, 119, 120, 7300, 200_000)] == ["0s", "119s", "2m", "2h", "2d"]


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:b", "a:0", "a:65536", "unix:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        top_sources.address(text)
    assert run("top", text)[0] == 2
