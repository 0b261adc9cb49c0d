"""The environments of real programs, and the engines that are put under them."""

from __future__ import annotations

import os
from pathlib import Path

from support.peers import unavailable
from support.venvs import REPOSITORY

HOME = REPOSITORY / "build" / "real"
ENGINES = {"kvferry": REPOSITORY / "python", "mooncake": HOME / "mooncake"}  # where Python finds mooncake.engine
WHOLE = os.environ.get("KVFERRY_REAL", "whole") == "whole"  # rather than the short form, for CI


def installed(name: str) -> bool:
    return (HOME / name / "installed").exists()


def interpreter(name: str) -> Path:
    """Return the interpreter that has a program; skip the test where it is not installed."""
    if not installed(name):
        unavailable(f"`make test-{name}` installs what this needs, in {HOME / name}")
    return HOME / name / "bin" / "python"


def engine_settings(engine: str) -> dict[str, str]:
    """Return the environment variables that put an engine under a program."""
    common = {"PYTHONPATH": str(ENGINES[engine])}
    if engine == "mooncake":
        return {**common, "MC_FORCE_TCP": "1"}
    return {**common, "KVFERRY_SAME_HOST": os.environ["KVFERRY_SAME_HOST"]}
