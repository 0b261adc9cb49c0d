"""README.md and docs: links lead somewhere, programs run, settings exist, figures are those that were measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from kvferry import Layout
from support import venvs
from support.readme import DOCS, programs
from support.venvs import REPOSITORY

README, DEPLOY, MANIFEST = REPOSITORY / "README.md", DOCS / "deploy.md", DOCS / "kubernetes.yaml"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
SETTING = re.compile(r"\b(?:MC|KVFERRY)_[A-Z0-9_]+\b")
NO_SETTINGS = {"KVFERRY_SAMEHOST"}  # deploy.md shows it as a mistake
KUBERNETES = "1.31"


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(page: str) -> list[str]:
    """The relative links of a page, as PATH, PATH#PLACE or #PLACE; what is code is no link."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page, flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:", link)]


def places(page: str) -> set[str]:
    """What links to a place on a page may name: its headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_to_a_file_and_to_a_place_in_it(page: Path) -> None:
    for link in links(text(page)):
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is no file"
        assert not place or place in places(text(target)), f"{page.name} links to {link}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_lines_of_prose_are_no_longer_than_120_characters(page: Path) -> None:
    """Rows of tables and code are as long as they have to be."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))] == []


def test_every_page_for_users_is_linked_from_the_readme() -> None:
    linked = {(REPOSITORY / link.partition("#")[0]).resolve() for link in links(text(README))}
    assert set(DOCS.glob("*.md")) <= linked


def test_every_setting_of_the_guide_exists() -> None:
    known = set(SETTING.findall(text(DOCS / "configuration.md")))
    used = set(SETTING.findall(text(DEPLOY) + text(MANIFEST)))
    assert "MC_TRANSFER_TIMEOUT" in used
    assert used - known == NO_SETTINGS


def test_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^make (\S+)", text(README), re.MULTILINE)
    assert "demo" in commands
    for target in commands:
        assert re.search(rf"^{target}:", text(REPOSITORY / "Makefile"), re.MULTILINE)


def test_the_chart_shows_the_figures_of_the_performance_page() -> None:
    done = run(str(REPOSITORY / "scripts" / "throughput_chart.py"), "--check")
    assert done.returncode == 0, done.stderr


def test_figures_name_the_same_machine_everywhere() -> None:
    machine = "virtual machine with 16 processors and an NVIDIA H200 (Linux 6.18, driver 580)"
    for page in (README, DOCS / "performance.md", DOCS / "gpu.md"):
        assert machine in " ".join(text(page).split()), f"{page.name} names another machine"


def test_the_kubernetes_manifest_has_what_the_api_takes() -> None:
    found = list(yaml.safe_load_all(text(MANIFEST)))
    assert [one["metadata"]["name"] for one in found if one["kind"] == "Deployment"] == ["prefill", "decode", "proxy"]
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    selected = [one["spec"]["selector"] for one in found if one["kind"] == "Service"]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in found if one["kind"] == "Deployment"]
    assert selected == labels, "a service has no pods"


@pytest.mark.parametrize(("page", "count"), [("python.md", 4), ("layouts.md", 4)])
def test_programs_of_a_page_run(tmp_path: Path, page: str, count: int) -> None:
    found = programs(text(DOCS / page), "python")
    assert len(found) == count
    for source in found:
        program = tmp_path / "example.py"
        program.write_text(source)
        done = run(str(program))
        assert done.returncode == 0, done.stderr


def test_the_text_of_a_layout_on_the_page_is_one() -> None:
    _offer, written = programs(text(DOCS / "layouts.md"), "json")
    assert json.loads(Layout.from_json(written).json())["block_tokens"] == 16


@pytest.fixture
def two_machines(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The guide's program for the receiving machine, running, and the file of that for the sending one."""
    receive, send = programs(text(DEPLOY), "python")
    (tmp_path / "receive.py").write_text(receive)
    (tmp_path / "send.py").write_text(send)
    receiver = subprocess.Popen(
        [sys.executable, str(tmp_path / "receive.py"), "127.0.0.1"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with receiver:
        yield receiver, tmp_path / "send.py"
        receiver.kill()


def test_programs_of_the_guide_move_bytes(two_machines: tuple[subprocess.Popen[str], Path]) -> None:
    receiver, send = two_machines
    assert receiver.stdout is not None
    peer, address = receiver.stdout.readline().split()
    done = run(str(send), "127.0.0.1", peer, address)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    rest, _ = receiver.communicate("\n", timeout=60)
    assert rest == "b'KV cache'\n"


def environment() -> dict[str, str]:
    return {**os.environ, **venvs.ours()}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=60)
