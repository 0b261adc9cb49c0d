"""The README's example in C, as it stands there."""

from __future__ import annotations

from pathlib import Path

from support.readme import example

from .conftest import Installed


def test_c_example_builds_against_the_installed_library_and_runs(installed: Installed, tmp_path: Path) -> None:
    source = tmp_path / "readme.c"
    source.write_text(example("c"))
    done = installed.run(installed.compile(source))
    assert done.returncode == 0, done.stderr
