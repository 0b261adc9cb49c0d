"""The C interface, used by C programs: each checks what its first line says, and ends with 0."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Optional

import pytest

from support import devices

from .conftest import TESTS, Installed

KINDS = pytest.mark.parametrize("kind", ["shared", "static", "sanitized"])


def check(
    installed: Installed,
    kind: str,
    name: str,
    *arguments: str,
    ends_with: int = 0,
    settings: Optional[dict[str, str]] = None,
) -> None:
    done = installed.run(installed.compile(TESTS / f"{name}.c", kind), *arguments, settings=settings)
    assert done.returncode == ends_with, done.stdout + done.stderr


@pytest.mark.each_path
@KINDS
@pytest.mark.parametrize(
    "name",
    [
        "engine",
        "handles",
        "transfers",
        "access",
        "plans",
        "completions",
        "stuck",
        "fork",
        "signals",
        "handlers",
        "threads",
    ],
)
def test_program_finds_what_the_interface_promises(installed: Installed, name: str, kind: str) -> None:
    check(installed, kind, name)


FAILING = [
    "createTransferEngine",
    "destroyTransferEngine",
    "discoverTopology",
    "getLocalIpAndPort",
    "installTransport",
    "uninstallTransport",
    "openSegment",
    "openSegmentNoCache",
    "closeSegment",
    "warmupEfaSegment",
    "removeLocalSegment",
    "syncSegmentCache",
    "registerLocalMemory",
    "unregisterLocalMemory",
    "registerLocalMemoryBatch",
    "unregisterLocalMemoryBatch",
    "allocateBatchID",
    "submitTransfer",
    "submitTransferWithNotify",
    "getTransferStatus",
    "freeBatchID",
    "getNotifsFromEngine",
    "getNotifsFromEngine",
    "freeNotifsMsgBuf",
    "genNotifyInEngine",
    "getNicLoadStats",
    "getNicLoadStats",
    "enableGracefulShutdown",
    "showLinks",
]


@KINDS
@pytest.mark.parametrize(
    ("what", "failed"),
    [("each", FAILING), ("none", []), ("asked", []), ("child", ["discoverTopology"])],
    ids=["each", "none", "asked", "child"],
)
def test_a_call_that_fails_logs_why_in_one_line(installed: Installed, kind: str, what: str, failed: list[str]) -> None:
    done = installed.run(installed.compile(TESTS / "failures.c", kind), what)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("\t") for line in done.stderr.splitlines() if "\tERROR\t" in f"\t{line}"]
    assert [field.removesuffix(" failed") for line in lines for field in line if field.endswith(" failed")] == failed
    assert len(done.stderr.splitlines()) == len(failed), done.stderr


@pytest.mark.each_path
@KINDS
@pytest.mark.parametrize(("vendor", "report"), [("npu", "report"), ("cuda", "report.cuda")])
def test_program_moves_device_memory(installed: Installed, vendor: str, report: str, kind: str, tmp_path: Path) -> None:
    settings = devices.settings(KVFERRY_SIM_REPORT=str(tmp_path / "report"))
    check(installed, kind, "devices", vendor, settings=settings)
    if devices.simulated(vendor):
        devices.check_nothing_left(json.loads((tmp_path / report).read_text()))


@KINDS
def test_program_is_told_where_the_library_of_npus_was_searched(installed: Installed, kind: str) -> None:
    check(installed, kind, "devices", "absent")


@KINDS
@pytest.mark.parametrize("how", ["return", "exit", "thread"])
def test_process_ends_with_a_live_engine_and_a_transfer_in_flight(installed: Installed, how: str, kind: str) -> None:
    check(installed, kind, "exit", how)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["default", "destroyed"])
def test_graceful_shutdown_leaves_the_default_of_a_signal(installed: Installed, state: str, number: int) -> None:
    check(installed, "shared", "shutdown", state, str(int(number)), ends_with=-number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["handler", "ignored", "child"])
def test_graceful_shutdown_leaves_what_the_program_does_with_a_signal(
    installed: Installed, state: str, number: int
) -> None:
    check(installed, "shared", "shutdown", state, str(int(number)))
