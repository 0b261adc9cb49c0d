"""Names of a test's parameters."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """repr() without addresses, so that a test has one name in all processes that share a run."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
