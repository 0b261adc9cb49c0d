"""A program that is the link between two hosts, which are network namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.peers import unavailable

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))


@pytest.fixture(scope="session")
def link_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """comparison/delaylink.c, compiled."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        unavailable("this needs a C compiler")
    program = tmp_path_factory.mktemp("link") / "delaylink"
    source = BENCH / "comparison" / "delaylink.c"
    subprocess.run([*compiler.split(), "-O2", "-std=c99", "-pthread", str(source), "-o", str(program)], check=True)
    return program
