"""The pages for users: their text, and the programs in them."""

from __future__ import annotations

import re

from .venvs import REPOSITORY

DOCS = REPOSITORY / "docs"
FIRST_PROGRAMS = {"python": DOCS / "python.md", "c": DOCS / "c-api.md"}


def example(language: str) -> str:
    """Return the first program that a page shows to those who use that language."""
    return programs(FIRST_PROGRAMS[language].read_text(), language)[0]


def programs(page: str, language: str) -> list[str]:
    """Return the blocks of code in that language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
