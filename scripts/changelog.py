"""Make CHANGELOG.md of the files in changelog/, one for each change, and check their form.

changelog.py                        write CHANGELOG.md: an entry for each release, the newest first
changelog.py release VERSION DATE   make the files in changelog/unreleased those of a release, and write CHANGELOG.md
changelog.py --check                fail where a file has another form, or CHANGELOG.md is not what would be written

A file is as changelog/TEMPLATE says; the folder of a release is named VERSION_DATE.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
KINDS = ("Added", "Changed", "Fixed", "Security", "Removed")  # in the order of an entry
RELEASE = re.compile(r"(?P<version>\d+\.\d+\.\d+)_(?P<date>\d{4}-\d\d-\d\d)")
TITLE = re.compile(rf"({'|'.join(KINDS)}): (\S.{{0,79}})")
INTRODUCTION = """\
# Changelog

What users notice, by release. `scripts/changelog.py` makes this file of those in [changelog](changelog), where
`changelog/unreleased` has what the next release brings.
"""


class ChangelogError(Exception):
    """A file or folder of the changelog has another form; the text says which, and what is wrong."""


class Change(NamedTuple):
    kind: str
    title: str
    text: str


def main() -> int:
    try:
        return run(REPOSITORY, sys.argv[1:])
    except ChangelogError as error:
        print(f"changelog.py: {error}", file=sys.stderr)
        return 1


def run(root: Path, arguments: list[str]) -> int:
    unreleased = root / "changelog" / "unreleased"
    changes(unreleased)
    if arguments[:1] == ["release"] and len(arguments) == 3:
        release(unreleased, "_".join(arguments[1:]))
    elif arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    text, file = changelog(root), root / "CHANGELOG.md"
    if arguments != ["--check"]:
        file.write_text(text, encoding="utf-8")
    elif not file.exists() or file.read_text(encoding="utf-8") != text:
        raise ChangelogError("CHANGELOG.md is not made of the files in changelog/: run scripts/changelog.py")
    return 0


def release(unreleased: Path, name: str) -> None:
    """Move what is unreleased to a folder of that name."""
    if not RELEASE.fullmatch(name):
        raise ChangelogError(f"{name} is not VERSION_DATE, as 1.2.3_2026-01-31")
    folder = unreleased.parent / name
    if folder.exists():
        raise ChangelogError(f"{folder} is there already")
    if not changes(unreleased):
        raise ChangelogError(f"there is nothing in {unreleased}")
    folder.mkdir()
    for path in files(unreleased):
        path.rename(folder / path.name)


def changelog(root: Path) -> str:
    """Return the text of CHANGELOG.md."""
    folders = {}
    for folder in (root / "changelog").iterdir():
        match = RELEASE.fullmatch(folder.name)
        if match:
            folders[tuple(map(int, match["version"].split(".")))] = folder
        elif folder.name not in ("unreleased", "TEMPLATE"):
            raise ChangelogError(f"{folder} is neither unreleased nor VERSION_DATE")
    return "\n".join([INTRODUCTION, *(entry(folder) for _, folder in sorted(folders.items(), reverse=True))])


def entry(folder: Path) -> str:
    """Return the section of a release."""
    version, date = folder.name.split("_")
    parts = [f"## {version} ({date})\n"]
    found = changes(folder)
    for kind in KINDS:
        these = [change for change in found if change.kind == kind]
        if these:
            parts.append(f"### {kind}\n")
            parts.extend(f"- **{change.title}.**\n{indented(change.text)}\n" for change in these)
    return "\n".join(parts)


def indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())


def changes(folder: Path) -> list[Change]:
    """Return the changes of a folder, by the names of their files."""
    return [parse(path) for path in files(folder)]


def files(folder: Path) -> list[Path]:
    """Return the files of a folder, none where it is not there: git keeps no empty one."""
    return sorted(folder.iterdir()) if folder.exists() else []


def parse(path: Path) -> Change:
    """Return the change that a file is about."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", path.name):
        raise ChangelogError(f'{path} must have a name of small letters, digits and "-", with no suffix')
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    title = TITLE.fullmatch(lines[0]) if lines else None
    if title is None or title[2].endswith("."):
        raise ChangelogError(
            f"{path} must begin with one of {', '.join(KINDS)}, a colon, and a title without full stop"
        )
    if len(lines) < 3 or lines[1] or not lines[2].strip():
        raise ChangelogError(f"{path} must have an empty line after the title, and then the text")
    if any(line != line.rstrip() or len(line) > 120 for line in lines):
        raise ChangelogError(f"{path} has a line of more than 120 characters, or one that ends in a space")
    return Change(title[1], title[2], "\n".join(lines[2:]).strip("\n"))


if __name__ == "__main__":
    sys.exit(main())
