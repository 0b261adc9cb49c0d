"""The examples of README.md."""

from __future__ import annotations

import re

from .venvs import REPOSITORY


def example(language: str) -> str:
    """Return the one example in that language."""
    text = (REPOSITORY / "README.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"README.md has {len(found)} examples in {language}"
    return str(found[0])
