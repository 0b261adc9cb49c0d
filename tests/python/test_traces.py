"""Traces: what the files have of transfers between two processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvferry._command.main import main
from support import devices
from support.memory import Memory
from support.peer import Peer
from support.peers import Peers
from support.traces import Trace, begin, end

SMALL, LARGE = 4096, 5 << 20
MEDIUM = 512 << 10  # has fewer copies than a batch has steps recorded


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Peers of one test, which end their engines by themselves."""
    started = Peers(tmp_path)
    yield started
    started.close()


def move(initiator: Peer, target: Peer, opcode: str, here: Memory, there: Memory, size: int) -> None:
    assert initiator.move(target.name, opcode, [[here.address, there.address, size]])["code"] == 0


def trace_of(peer: Peer, folder: Path) -> Trace:
    """Close a peer's engine and read its file, which is the user's alone."""
    assert peer.close() == 0
    path = folder / f"{peer.pid}.json"
    assert path.stat().st_mode & 0o7777 == 0o600
    return Trace(path)


def requests(spans: list[dict[str, Any]]) -> int:
    """How many requests the events stand for."""
    return sum(span["args"]["requests"] for span in spans)


def connected(initiator: Trace, target: Trace) -> int:
    """How many requests of an initiator the target's file has, with the same sizes. Both files have the clock of one
    machine, so the target begins later. Small requests may be together on one side, and apart on the other."""
    begun, served = initiator.flows(), target.flows()
    both = begun.keys() & served.keys()
    for key in both:
        there, here = begun[key]["s"], served[key]["f"]
        assert there["name"] == here["name"]
        assert there["args"]["bytes"] == here["args"]["bytes"] or {1} != {e["args"]["requests"] for e in (there, here)}
        assert begin(there) <= begin(here), (there, here)
    return len(both)


@pytest.mark.parametrize("same_host", ["0", "1"])
def test_both_files_have_the_steps_of_a_transfer(peers: Peers, tmp_path: Path, same_host: str) -> None:
    settings = {"KVFERRY_TRACE_FILE": f"{tmp_path}/%p.json", "KVFERRY_SAME_HOST": same_host}
    target, initiator = (peers("ours", **settings).create() for _ in range(2))
    there, here = (peer.memory(LARGE) for peer in (target, initiator))
    for size in (SMALL, LARGE):
        move(initiator, target, "write", here, there, size)
        move(initiator, target, "read", here, there, size)
    trace, served = trace_of(initiator, tmp_path), trace_of(target, tmp_path)

    batches = trace.of("batch")
    assert [(b["name"], b["args"]["bytes"], b["args"]["failed"]) for b in batches] == [
        (f"{what} batch", size, 0) for size in (SMALL, LARGE) for what in ("write", "read")
    ]
    assert [child["name"] for child in trace.within(batches[0])] == ["queue"]
    for batch in batches:
        steps = [e for e in trace.spans if e.get("args", {}).get("batch") == batch["args"]["batch"] and e is not batch]
        done = [e for e in steps if "lost" not in e["args"]]
        assert sum(e["args"]["bytes"] for e in done) == batch["args"]["bytes"], steps
        for step in steps:
            assert begin(batch) <= begin(step) and end(step) <= end(batch)
    answered = [r for r in trace.of("request") if "lost" not in r["args"]]
    for request in answered:
        steps = [child["name"] for child in trace.within(request)]
        # The answer may come before the call that sends returns, and the payload of a READ together with its status.
        every = ["send", "wait for the peer", "receive"] if request["name"] == "READ" else ["send", "wait for the peer"]
        assert steps[0] == "send" and steps == [step for step in every if step in steps]
        assert trace.track(request).startswith(f"to {target.name}, connection ")
    assert len(answered) > LARGE >> 20
    assert connected(trace, served) == requests(served.of("served")) == requests(trace.of("request"))
    assert (
        trace.all["otherData"]["engines"][0]["clocks"][0]["identity"]
        == served.all["otherData"]["engines"][0]["identity"]
    )


def test_small_requests_that_are_sent_together_are_one_event_with_an_arrow_for_each(
    peers: Peers, tmp_path: Path
) -> None:
    settings = {"KVFERRY_TRACE_FILE": f"{tmp_path}/%p.json", "KVFERRY_SAME_HOST": "0"}
    target, initiator = (peers("ours", **settings).create() for _ in range(2))
    there, here = (peer.memory(LARGE) for peer in (target, initiator))
    for opcode in ("write", "read"):
        parts = [[here.address + at, there.address + at, SMALL] for at in range(0, 16 * 2 * SMALL, 2 * SMALL)]
        assert initiator.move(target.name, opcode, parts)["code"] == 0
    trace, served = trace_of(initiator, tmp_path), trace_of(target, tmp_path)
    for batch in trace.of("batch"):
        assert batch["args"]["requests"] == 16 and batch["args"]["steps_left_out"] == 0
    assert requests(trace.of("request")) == requests(served.of("served")) == connected(trace, served) == 2 * 16
    assert len(trace.of("request")) < 2 * 16


def test_copies_of_devices_are_in_the_file_of_the_side_that_makes_them(peers: Peers, tmp_path: Path) -> None:
    settings = devices.settings(KVFERRY_TRACE_FILE=f"{tmp_path}/%p.json")
    target, initiator = (peers("ours", **settings).create() for _ in range(2))
    there, here = target.memory(MEDIUM, place="cuda:0"), initiator.memory(MEDIUM, place="npu:0")
    move(initiator, target, "write", here, there, MEDIUM)
    move(initiator, target, "read", here, there, MEDIUM)
    trace, served = trace_of(initiator, tmp_path), trace_of(target, tmp_path)
    for name in ("copy out", "copy in"):
        copies = trace.named(name)
        assert sum(c["args"]["bytes"] for c in copies) == MEDIUM
        assert {trace.track(c).split(" (")[0] for c in copies} == {f"{name} npu:0"}
    for request in served.of("served"):
        steps = ["receive", "copy in", "answer"] if request["name"] == "WRITE" else ["copy out", "answer"]
        assert [child["name"] for child in served.within(request)] == steps
    assert connected(trace, served) == requests(served.of("served"))


def test_a_batch_that_failed_is_there_and_says_why(peers: Peers, tmp_path: Path) -> None:
    settings = {"KVFERRY_TRACE_FILE": f"{tmp_path}/%p.json"}
    target, initiator = (peers("ours", **settings).create() for _ in range(2))
    there, here = (peer.memory(SMALL) for peer in (target, initiator))
    move(initiator, target, "read", here, there, SMALL)
    assert initiator.call("transfer_sync_read", target.name, here.address, there.address + (1 << 40), 100) != 0
    assert initiator.call("transfer_sync_write", initiator.name, here.address, here.address + 100, 100) == 0
    trace = trace_of(initiator, tmp_path)
    _, failed, own = trace.of("batch")
    assert failed["args"]["failed"] == 1
    assert "rejected" in failed["args"]["error"]
    assert own["name"] == "write batch"
    (copy,) = trace.named("copy within the process")
    assert copy["args"]["batch"] == own["args"]["batch"]


def test_nothing_is_written_without_the_setting_and_nothing_short_with_a_limit(peers: Peers, tmp_path: Path) -> None:
    without = peers("ours").create()
    limited = peers("ours", KVFERRY_TRACE_FILE=f"{tmp_path}/%p.json", KVFERRY_TRACE_SLOWER_US="3600000000").create()
    there, here = without.memory(SMALL), limited.memory(SMALL)
    move(limited, without, "write", here, there, SMALL)
    assert trace_of(limited, tmp_path).of("batch") == []
    assert without.close() == 0
    assert not (tmp_path / f"{without.pid}.json").exists()


@pytest.mark.parametrize("path", ["/dev/full", "{folder}/link", "{folder}/no/such"])
def test_engines_work_where_the_file_cannot_be_written(peers: Peers, tmp_path: Path, path: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("old")
    os.symlink(precious, tmp_path / "link")
    target, initiator = (peers("ours", KVFERRY_TRACE_FILE=path.format(folder=tmp_path)).create() for _ in range(2))
    there, here = (peer.memory(SMALL) for peer in (target, initiator))
    for _ in range(3):
        move(initiator, target, "write", here, there, SMALL)
    assert initiator.close() == 0
    assert initiator.log().count("the trace cannot be written") == 1
    assert precious.read_text() == "old"


def exchanged(peers: Peers, folder: Path) -> tuple[Path, Path]:
    """The files of an initiator and a target."""
    settings = {"KVFERRY_TRACE_FILE": f"{folder}/%p.json", "KVFERRY_SAME_HOST": "0"}
    target, initiator = (peers("ours", **settings).create() for _ in range(2))
    there, here = (peer.memory(LARGE) for peer in (target, initiator))
    for opcode in ("write", "read"):
        move(initiator, target, opcode, here, there, LARGE)
    for peer in (initiator, target):
        trace_of(peer, folder)
    return folder / f"{initiator.pid}.json", folder / f"{target.pid}.json"


def elsewhere(path: Path, boot: str, later: float) -> Path:
    """A file as a machine would have written it that has started so many microseconds later."""
    trace = json.loads(path.read_text())
    for event in trace["traceEvents"]:
        event["ts"] = 0 if event["ph"] == "M" else round(event["ts"] - later, 3)
    for engine in trace["otherData"]["engines"]:
        engine["began_us"] -= later
        for clock in engine["clocks"]:
            clock["began_us"] -= later
    trace["otherData"]["boot_id"] = boot
    trace["otherData"]["unix_seconds_of_zero"] += later / 1e6
    moved = path.with_name(f"{boot}.json")
    moved.write_text(json.dumps(trace))
    return moved


def merged(folder: Path, capsys: pytest.CaptureFixture[str], *paths: Path) -> tuple[Trace, Any]:
    """What the command makes of files, and what it says."""
    capsys.readouterr()
    output = folder / "merged.json"
    assert main(["trace", "merge", *map(str, paths), "--output", str(output), "--json"]) == 0
    return Trace(output), json.loads(capsys.readouterr().out)


def test_merged_traces_have_both_sides_of_each_request(
    peers: Peers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initiator, target = exchanged(peers, tmp_path)
    trace, told = merged(tmp_path, capsys, initiator, target)
    assert [file["by"] for file in told["files"]] == ["machine", "machine"]
    served = trace.of("served")
    assert told["requests_with_both_sides"] == requests(served) == connected(trace, trace) >= 2 * LARGE >> 20
    assert len({span["pid"] for span in trace.spans}) == 2
    assert min(begin(span) for span in trace.spans) == 0


@pytest.mark.parametrize("first", ["initiator", "target"])
def test_clocks_of_two_machines_are_aligned_by_what_engines_told_each_other(
    peers: Peers, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str
) -> None:
    initiator, target = exchanged(peers, tmp_path)
    moved = elsewhere(target, "other", 1.5e9)
    exact, _ = merged(tmp_path, capsys, initiator, target)
    trace, told = merged(tmp_path, capsys, *([initiator, moved] if first == "initiator" else [moved, initiator]))
    by, error = told["files"][1]["by"], told["files"][1]["error_us"]
    assert by == "hello"
    assert abs(abs(told["files"][1]["shift_us"]) - 1.5e9) <= error + 1
    ends, truth = trace.flows(), exact.flows()
    for key, sides in ends.items():
        if len(sides) == 2:
            apart, right = (begin(x["f"]) - begin(x["s"]) for x in (sides, truth[key]))
            assert abs(apart - right) <= (error + 1) * 1000


def test_the_way_from_clock_to_clock_leads_through_other_files(
    peers: Peers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    initiator, target = exchanged(peers, tmp_path / "one")
    beside, strange = exchanged(peers, tmp_path / "two")
    a, b = elsewhere(initiator, "a", 0), elsewhere(target, "b", 2e9)
    c, d = elsewhere(beside, "b", 2e9), elsewhere(strange, "d", 3e9)
    _, told = merged(tmp_path, capsys, a, d, c, b)
    assert [file["by"] for file in told["files"]] == ["machine", "hello", "hello", "hello"]
    _, told = merged(tmp_path, capsys, a, c)
    assert [file["by"] for file in told["files"]] == ["machine", "date"]
    assert told["files"][1]["error_us"] is None
    assert abs(told["files"][1]["shift_us"] - 2e9) < 1e6


def test_only_traces_are_merged_and_only_files_are_replaced(
    peers: Peers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initiator, target = exchanged(peers, tmp_path)
    bad = tmp_path / "bad.json"
    good = initiator.read_text()
    merged(tmp_path, capsys, initiator, target)
    for text in ("", "{", "[]", "null", '{"otherData": 1}', good[:1000], (tmp_path / "merged.json").read_text()):
        bad.write_text(text)
        assert main(["trace", "merge", str(initiator), str(bad), "--output", str(tmp_path / "out")]) == 1
        assert f"{bad} was not written by KVFERRY_TRACE_FILE" in capsys.readouterr().err
    assert main(["trace", "merge", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert main(["trace", "merge", str(initiator), "--output", "/dev/full"]) == 1
    assert main(["trace", "merge", str(initiator), "--output", str(tmp_path / "no" / "such")]) == 1
    os.symlink(initiator, tmp_path / "link")
    assert main(["trace", "merge", str(target), "--output", str(tmp_path / "link")]) == 0
    assert initiator.read_text() == good
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(".")]
