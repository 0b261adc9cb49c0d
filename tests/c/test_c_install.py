"""What `make install` puts in place for programs in C and C++."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.venvs import REPOSITORY

from .conftest import COMPILE_LIMIT, STRICT, TESTS, Installed, checked

HEADERS = ("transfer_engine_c.h", "transfer_engine_ext.h")
EXAMPLES = sorted((REPOSITORY / "capi" / "examples").glob("*.c*"))


def declared(header: Path) -> set[str]:
    """Return the names of the functions that a header declares."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    return set(re.findall(r"(\w+)\([^;{]*\);", text))


@pytest.mark.parametrize("language", [["-x", "c", "-std=c99"], ["-x", "c++", "-std=c++11"]], ids=["C99", "C++11"])
@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone_and_without_a_warning(installed: Installed, header: str, language: list[str]) -> None:
    checked(["cc", *language, *STRICT, "-fsyntax-only", str(installed.include / header)], COMPILE_LIMIT)


@pytest.mark.parametrize("language", [["-x", "c", "-std=c99"], ["-x", "c++", "-std=c++11"]], ids=["C99", "C++11"])
def test_types_and_numbers_are_those_of_the_interface(installed: Installed, language: list[str]) -> None:
    source = str(TESTS / "layout.c")
    checked(["cc", *language, *STRICT, "-fsyntax-only", *installed.flags("--cflags"), source], COMPILE_LIMIT)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_against_the_installed_copy(installed: Installed, example: Path) -> None:
    done = installed.run(installed.compile(example))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte" in done.stdout


def test_there_is_an_example_in_each_language() -> None:
    assert {path.suffix for path in EXAMPLES} == {".c", ".cpp"}


def test_shared_library_exports_what_the_headers_declare_and_nothing_else(installed: Installed) -> None:
    symbols = checked(["nm", "-D", "--defined-only", str(installed.lib / "libtransfer_engine.so")], COMPILE_LIMIT)
    exported = {line.split()[-1] for line in symbols.splitlines()}
    assert exported == {name for header in HEADERS for name in declared(installed.include / header)}


def test_shared_library_has_its_soname(installed: Installed) -> None:
    library = installed.lib / "libtransfer_engine.so"
    assert "[libtransfer_engine.so.0]" in checked(["readelf", "-d", str(library)], COMPILE_LIMIT)
    assert library.resolve() == (installed.lib / "libtransfer_engine.so.0").resolve()


def test_static_library_defines_no_name_that_a_program_may_use(installed: Installed) -> None:
    symbols = checked(["nm", "-g", "--defined-only", str(installed.lib / "libtransfer_engine.a")], COMPILE_LIMIT)
    defined = {fields[2] for fields in map(str.split, symbols.splitlines()) if len(fields) == 3}
    ours = {name for header in HEADERS for name in declared(installed.include / header)}
    runtimes = re.compile(r"_?_?(x_)?_?(cgo|crosscall|runtime)|_rt0_|kvferry_|_cgoexp_|fatalf$|main$")
    assert {name for name in defined - ours if not runtimes.match(name)} == set()


@pytest.mark.parametrize("archive", ["libasio.a", "libbase.a", "libmooncake_common.a"])
def test_build_scripts_for_mooncakes_static_libraries_find_the_others(installed: Installed, archive: str) -> None:
    assert checked(["ar", "t", str(installed.lib / archive)], COMPILE_LIMIT) == ""


def test_own_c_sources_compile_without_a_warning(installed: Installed, tmp_path: Path) -> None:
    capi = REPOSITORY / "capi"
    with_c = [str(path) for path in sorted(capi.glob("*.go")) if '\nimport "C"\n' in path.read_text()]
    include = [f"-I{capi}", f"-I{installed.include}", "-D_GNU_SOURCE"]
    checked(
        ["go", "tool", "cgo", "-objdir", str(tmp_path), "-importpath", "kvferry/capi", "--", *include, *with_c], 120
    )
    for source in sorted(capi.glob("*.c")):
        checked(["cc", "-std=c99", *STRICT, "-fsyntax-only", f"-I{tmp_path}", *include, str(source)], COMPILE_LIMIT)


def test_version_is_the_projects(installed: Installed) -> None:
    version = installed.flags("--modversion")[0]
    assert f'__version__ = "{version}"' in (REPOSITORY / "python" / "kvferry" / "__init__.py").read_text()
    assert version in checked(["strings", "-a", str(installed.lib / "libtransfer_engine.so")], COMPILE_LIMIT)
