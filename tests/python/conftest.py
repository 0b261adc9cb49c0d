"""Engines that the tests of this folder share."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Callable

import pytest

from kvferry import _log
from mooncake.engine import TransferEngine
from support.inprocess import Node
from support.process import until


@pytest.fixture
def fresh_engine() -> TransferEngine:
    """An engine that was not initialized."""
    return TransferEngine()


@pytest.fixture(scope="module")
def near(path: str) -> Node:
    """The engine that starts transfers; shared by the module's tests that use the same path."""
    return Node()


@pytest.fixture(scope="module")
def far(path: str) -> Node:
    """The engine that they go to, over a connection although it is of this process."""
    return Node()


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What Python's part of kvferry has logged since the test began, or since the last call."""
    monkeypatch.setenv("MC_LOG_DIR", str(tmp_path))
    file = tmp_path / f"kvferry.{os.getpid()}.log"
    seen = 0

    def read() -> str:
        nonlocal seen
        end = f"end {uuid.uuid4()}\n"
        _log.error(end.strip())  # lines are written in their order
        until(lambda: file.exists() and end in file.read_text(), 30, "the log is written")
        before, _, _ = file.read_text()[seen:].partition(end)  # engines of other tests may log something later
        text = before + end
        seen += len(text)
        return text

    return read
