"""Traces: what the files have of transfers between two processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import devices
from support.memory import Memory
from support.peer import Peer
from support.peers import Peers
from support.traces import Trace, begin, end

SMALL, LARGE = 4096, 5 << 20


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


def connected(initiator: Trace, target: Trace) -> int:
    """How many requests of an initiator the target's file has, with the same sizes. Both files have the clock of one
    machine, so the target begins later."""
    begun, served = initiator.flows(), target.flows()
    both = begun.keys() & served.keys()
    for key in both:
        there, here = begun[key]["s"], served[key]["f"]
        assert (there["name"], there["args"]["bytes"]) == (here["name"], here["args"]["bytes"])
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
    requests = [r for r in trace.of("request") if "lost" not in r["args"]]
    for request in requests:
        last = [] if request["name"] == "WRITE" else ["receive"]
        assert [child["name"] for child in trace.within(request)] == ["send", "wait for the peer", *last]
        assert trace.track(request).startswith(f"to {target.name}, connection ")
    assert len(requests) > LARGE >> 20
    assert connected(trace, served) == len(served.of("served")) == len(trace.of("request"))
    assert (
        trace.all["otherData"]["engines"][0]["clocks"][0]["identity"]
        == served.all["otherData"]["engines"][0]["identity"]
    )


def test_copies_of_devices_are_in_the_file_of_the_side_that_makes_them(peers: Peers, tmp_path: Path) -> None:
    settings = devices.settings(KVFERRY_TRACE_FILE=f"{tmp_path}/%p.json")
    target, initiator = (peers("ours", **settings).create() for _ in range(2))
    there, here = target.memory(LARGE, place="cuda:0"), initiator.memory(LARGE, place="npu:0")
    move(initiator, target, "write", here, there, LARGE)
    move(initiator, target, "read", here, there, LARGE)
    trace, served = trace_of(initiator, tmp_path), trace_of(target, tmp_path)
    for name in ("copy out", "copy in"):
        copies = trace.named(name)
        assert sum(c["args"]["bytes"] for c in copies) == LARGE
        assert {trace.track(c).split(" (")[0] for c in copies} == {f"{name} npu:0"}
    for request in served.of("served"):
        steps = ["receive", "copy in", "answer"] if request["name"] == "WRITE" else ["copy out", "answer"]
        assert [child["name"] for child in served.within(request)] == steps
    assert connected(trace, served) == len(served.of("served"))


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
