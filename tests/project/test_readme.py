"""README.md: its example in Python as it stands there, and its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import venvs
from support.readme import example


def test_python_example_runs(tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    program.write_text(example("python"))
    env = {**os.environ, **venvs.ours()}
    done = subprocess.run([sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["demo", "test", "bench"])
def test_commands_are_targets_of_the_makefile(target: str) -> None:
    assert f"make {target}" in (venvs.REPOSITORY / "README.md").read_text()
    assert re.search(rf"^{target}:", (venvs.REPOSITORY / "Makefile").read_text(), re.MULTILINE)
