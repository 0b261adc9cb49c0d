"""The README as PyPI shows it: what it links in the repository by a relative path is linked at its address."""

from __future__ import annotations

import re
from pathlib import Path

from build_library import REPOSITORY, find, project_version

# ](PATH) and ](PATH#PLACE), src="PATH" and href="PATH", but for places on the page itself and what is absolute.
LINK = re.compile(r"""(?P<before>(?P<image>!?)\[[^\]]*\]\(|(?:src|href)=")(?P<path>(?![a-z]+:|#)[^)"\s]+)""")


def text() -> str:
    """Return README.md with absolute links."""
    return absolute((REPOSITORY / "README.md").read_text(encoding="utf-8"), REPOSITORY)


def absolute(readme: str, root: Path) -> str:
    """Return a README with links to what this version has; `root` is the folder that it is in."""
    source = find(root / "pyproject.toml", r'^Source = "(\S+)"$')
    version = f"v{project_version()}"

    def address(link: re.Match[str]) -> str:
        path = link["path"]
        image = bool(link["image"]) or link["before"].startswith("src")
        kind = "raw" if image else "tree" if (root / path.split("#")[0]).is_dir() else "blob"
        return f"{link['before']}{source}/{kind}/{version}/{path}"

    return LINK.sub(address, readme)
