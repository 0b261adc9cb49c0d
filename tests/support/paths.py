"""How our engines on this machine reach each other: by TCP, as if on different hosts, or as engines on one host do."""

from __future__ import annotations

import pytest

TCP, SAMEHOST = "tcp", "samehost"
VARIABLE = "KVFERRY_SAME_HOST"
SETTINGS = {TCP: "0", SAMEHOST: "1"}  # values of the variable


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Have a test run by each path. Module fixtures that depend on `path` are made once for each."""
    metafunc.parametrize("path", list(SETTINGS), indirect=True, scope="module")
