"""Engines of the test's own process, and Python programs in one of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kvferry
from kvferry._memory import Mapping
from mooncake.engine import TransferEngine

PACKAGES = Path(kvferry.__file__).parents[1]
TESTS = Path(__file__).parents[1]
HOST = "127.0.0.1"


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, in which the packages that are tested are found, with `settings`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(PACKAGES), str(TESTS))), **settings}


def run_python(program: str, limit: float = 90, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program, which begins with what programs.py has, in an interpreter of its own. It must end within `limit`
    seconds. `settings` are environment variables."""
    return subprocess.run(
        [sys.executable, "-c", f"from support.programs import *\n{program}"],
        env=environment(**settings),
        timeout=limit,
        capture_output=True,
        text=True,
    )


class Node:
    """An engine of this process with some registered memory."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.engine = TransferEngine()
        assert self.engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
        self.memory = Mapping(size)
        self.address = self.memory.address
        assert self.engine.register_memory(self.address, size) == 0

    @property
    def name(self) -> str:
        return f"{HOST}:{self.engine.get_rpc_port()}"

    def put(self, data: bytes, offset: int = 0) -> None:
        self.memory.buffer[offset : offset + len(data)] = data

    def get(self, length: int, offset: int = 0) -> bytes:
        return self.memory.buffer[offset : offset + length]


def probe_oneself(_: int) -> int:
    """Make an engine and let it probe itself; for workers of multiprocessing."""
    engine = TransferEngine()
    code = engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "")
    return code or engine.send_probe(f"{HOST}:{engine.get_rpc_port()}")
