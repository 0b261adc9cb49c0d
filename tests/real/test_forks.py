"""The harness: processes that are forked from one that has imported their program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from real.forks import ForkedPeer, Nursery
from support.peer import PeerError, environment

ROUNDS = 20


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(sys.executable, "support.worker", environment({}, ours=True), tmp_path / "import.log")
    yield made
    made.close()


def fork(nursery: Nursery, folder: Path) -> ForkedPeer:
    return ForkedPeer(nursery, "child", environment({}, ours=True), folder / "child.log")


def test_every_thread_that_waits_for_a_killed_child_hears_of_its_end(nursery: Nursery, tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        peer = fork(nursery, tmp_path)
        asked = peer.start("collect")
        peer.kill()
        assert peer.process.returncode == -signal.SIGKILL
        try:
            asked.result()  # it may have answered before
        except PeerError as e:
            assert "died, exit code -9" in str(e)


def test_a_child_that_ends_by_itself_gives_its_code(nursery: Nursery, tmp_path: Path) -> None:
    peer = fork(nursery, tmp_path)
    peer.ask("collect")
    assert peer.close() == 0


def test_children_end_with_the_process_that_they_were_forked_from(nursery: Nursery, tmp_path: Path) -> None:
    peers = [fork(nursery, tmp_path) for _ in range(3)]
    nursery.close()
    assert [peer.process.wait(60) for peer in peers] == [-signal.SIGKILL] * 3


def test_a_program_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    nursery = Nursery(sys.executable, "there_is_no_such_module", environment({}, ours=True), tmp_path / "import.log")
    with pytest.raises(RuntimeError, match="No module named 'there_is_no_such_module'"):
        fork(nursery, tmp_path)
    nursery.close()
