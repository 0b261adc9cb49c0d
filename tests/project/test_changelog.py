"""The changelog: the form of its files, and the entry that is made of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import changelog
from build_library import REPOSITORY

FIXED = "Fixed: Names with an IPv6 host work\n\nThey were refused.\n"


@pytest.fixture
def unreleased(tmp_path: Path) -> Path:
    folder = tmp_path / "changelog" / "unreleased"
    folder.mkdir(parents=True)
    return folder


def test_template_has_the_form_that_it_describes(unreleased: Path) -> None:
    text = (REPOSITORY / "changelog" / "TEMPLATE").read_text()
    (unreleased / "a").write_text(text)
    assert changelog.changes(unreleased)[0].kind == "Fixed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bugfix: Something\n\nText.\n",
        "Fixed: Something\nText.\n",
        "Fixed: Something\n",
        "Fixed: Something\n\n",
        "Fixed: Something.\n\nText.\n",
        f"Fixed: {'S' * 81}\n\nText.\n",
        "Fixed: Something\n\nText. \n",
    ],
)
def test_file_of_another_form_is_refused_and_named(unreleased: Path, text: str) -> None:
    (unreleased / "of-another-form").write_text(text)
    with pytest.raises(changelog.ChangelogError, match="of-another-form"):
        changelog.run(unreleased.parents[1], ["--check"])


def test_file_with_a_suffix_is_refused(unreleased: Path) -> None:
    (unreleased / "fix.md").write_text(FIXED)
    with pytest.raises(changelog.ChangelogError, match=r"fix\.md"):
        changelog.changes(unreleased)


def test_release_takes_all_that_is_unreleased_and_stands_first(unreleased: Path) -> None:
    root = unreleased.parents[1]
    (unreleased / "ipv6").write_text(FIXED)
    assert changelog.run(root, ["release", "0.9.0", "2026-01-31"]) == 0
    (unreleased / "b-later").write_text("Added: Later\n\nIt is new.\n\nVery.\n")
    (unreleased / "a-later").write_text("Changed: Earlier in its file's name\n\nBut second in kind.\n")
    assert changelog.run(root, ["release", "0.10.0", "2026-02-01"]) == 0
    assert list(unreleased.iterdir()) == []
    text = (root / "CHANGELOG.md").read_text()
    expected = """
## 0.10.0 (2026-02-01)

### Added

- **Later.**
  It is new.

  Very.

### Changed

- **Earlier in its file's name.**
  But second in kind.

## 0.9.0 (2026-01-31)

### Fixed

- **Names with an IPv6 host work.**
  They were refused.
"""
    assert text == changelog.INTRODUCTION + expected
    assert changelog.run(root, ["--check"]) == 0


def test_release_that_is_there_already_is_refused(unreleased: Path) -> None:
    (unreleased.parent / "0.9.0_2026-01-31").mkdir()
    (unreleased / "ipv6").write_text(FIXED)
    with pytest.raises(changelog.ChangelogError, match="already"):
        changelog.run(unreleased.parents[1], ["release", "0.9.0", "2026-01-31"])
    assert (unreleased / "ipv6").exists()


def test_changelog_that_was_edited_by_hand_is_told(unreleased: Path) -> None:
    root = unreleased.parents[1]
    (unreleased / "ipv6").write_text(FIXED)
    changelog.run(root, ["release", "0.9.0", "2026-01-31"])
    with (root / "CHANGELOG.md").open("a") as file:
        file.write("And this.\n")
    with pytest.raises(changelog.ChangelogError, match=r"run scripts/changelog\.py"):
        changelog.run(root, ["--check"])
