"""The C interface, used by C programs: each checks what its first line says, and ends with 0."""

from __future__ import annotations

import signal

import pytest

from .conftest import TESTS, Installed

KINDS = pytest.mark.parametrize("kind", ["shared", "static", "sanitized"])


def check(installed: Installed, kind: str, name: str, *arguments: str, ends_with: int = 0) -> None:
    done = installed.run(installed.compile(TESTS / f"{name}.c", kind), *arguments)
    assert done.returncode == ends_with, done.stdout + done.stderr


@KINDS
@pytest.mark.parametrize("name", ["engine", "handles", "transfers", "stuck", "fork", "signals", "threads"])
def test_program_finds_what_the_interface_promises(installed: Installed, name: str, kind: str) -> None:
    check(installed, kind, name)


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
