"""Fixtures that every folder of tests may use, and peers' logs in the report of a test that failed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support import paths, peer
from support.peers import Peers

# A shell starts what runs in the background with SIGINT ignored, which the processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "each_path: run the test by TCP and between engines on one host")
    config.addinivalue_line("markers", "devices: a test that moves memory of devices, simulated or real")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("each_path"):
        paths.parametrize(metafunc)


@pytest.fixture(scope="module", autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """How our engines reach each other: "tcp", as on different hosts, or "samehost".

    It is TCP for a test that neither has the mark each_path nor lies in tests/datapath. The settings of a peer may say
    otherwise.
    """
    chosen: str = getattr(request, "param", paths.TCP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.VARIABLE, paths.SETTINGS[chosen])
        yield chosen


LOG_TAIL = 8000  # characters of each peer's log that a failure shows


@pytest.fixture(scope="module")
def module_peers(path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Start peers that live as long as the module's tests by one path: module_peers(kind, MC_X="value")."""
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
