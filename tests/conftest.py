"""Fixtures that every folder of tests may use, and peers' logs in the report of a test that failed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support import peer
from support.peers import Peers

# A shell starts what runs in the background with SIGINT ignored, which the processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--same-host", action="store_true", help="let engines know that they are on one host, instead of using TCP"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The peers of a test stand for those on different hosts, unless a test or --same-host says otherwise."""
    os.environ["KVFERRY_SAME_HOST"] = str(int(config.getoption("--same-host")))


LOG_TAIL = 8000  # characters of each peer's log that a failure shows


@pytest.fixture(scope="module")
def module_peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Start peers that live as long as the module's tests: module_peers(kind, MC_X="value")."""
    made = Peers(tmp_path_factory.mktemp("peers"))
    yield made
    made.close()


@pytest.fixture
def start_peer(tmp_path: Path) -> Iterator[Peers]:
    """Start peers that live as long as the test: start_peer(kind, MC_X="value")."""
    made = Peers(tmp_path)
    yield made
    made.close()


def pytest_runtest_setup() -> None:
    peer.begin_test()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for p in filter(peer.Peer.log, peer.started):
            report.sections.append((f"log of {p}", p.log()[-LOG_TAIL:]))
