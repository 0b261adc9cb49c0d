"""Where random numbers come from."""

from __future__ import annotations

from pathlib import Path

from support.venvs import REPOSITORY


def shipped(path: Path) -> bool:
    """Whether it is part of the library, and no test or help of tests."""
    return not (path.name.endswith("_test.go") or path.parent.name.endswith("test"))


def test_only_tests_use_a_generator_that_forked_siblings_share() -> None:
    """math/rand is seeded with what the kernel gave the process at exec: children that are forked without exec and then
    load the library all get the same numbers from it."""
    folders = [f for f in REPOSITORY.iterdir() if f.is_dir() and not f.name.startswith(".") and f.name != "build"]
    sources = [path for folder in folders for path in folder.rglob("*.go") if shipped(path)]
    assert REPOSITORY / "core" / "registry.go" in sources
    assert [str(path) for path in sources if '"math/rand' in path.read_text()] == []
