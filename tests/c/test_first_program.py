"""The first program of docs/c-api.md, as it stands there."""

from __future__ import annotations

from pathlib import Path

from support.readme import example

from .conftest import Installed


def test_first_program_in_c_builds_against_the_installed_library_and_runs(installed: Installed, tmp_path: Path) -> None:
    source = tmp_path / "first.c"
    source.write_text(example("c"))
    done = installed.run(installed.compile(source))
    assert done.returncode == 0, done.stderr
