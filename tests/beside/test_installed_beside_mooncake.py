"""kvferry's wheel and Mooncake's, installed by pip into one environment, in either order, and taken out again."""

from __future__ import annotations

from pathlib import Path

import pytest

from .environments import Environment, Wheels

ORDERS = pytest.mark.parametrize(
    "order", [("mooncake", "kvferry"), ("kvferry", "mooncake")], ids=lambda order: " then ".join(order)
)


@pytest.fixture
def empty(wheels: Wheels, tmp_path: Path) -> Environment:
    """An environment without either."""
    return Environment(wheels, tmp_path / "environment")


@pytest.fixture
def both(empty: Environment, order: tuple[str, str]) -> Environment:
    """An environment in which the two were installed in that order."""
    for package in order:
        empty.install(package)
    return empty


@ORDERS
def test_both_together_are_whole_and_kvferry_serves_mooncake_engine(both: Environment) -> None:
    found = both.look()
    assert found["engine"] == "kvferry" and found["works"]
    assert found["buffer pool"] == "mooncake.store.BufferPool"
    assert found["package"] == str(both.packages / "mooncake" / "__init__.py")
    assert both.damaged() == []
    assert both.check() == "No broken requirements found."


@ORDERS
def test_without_kvferry_again_mooncake_is_as_it_was(both: Environment) -> None:
    both.uninstall("kvferry")
    found = both.look()
    assert found["engine"] == "mooncake" and found["works"]
    assert found["buffer pool"] == "mooncake.store.BufferPool"
    assert found["package"] == str(both.packages / "mooncake" / "__init__.py")
    assert both.damaged() == []
    assert both.check() == "No broken requirements found."
    assert list(both.packages.glob("*kvferry*")) == [] and not (both.packages / "mooncake" / "engine").exists()


@ORDERS
def test_without_mooncake_again_kvferry_works(both: Environment) -> None:
    both.uninstall("mooncake")
    found = both.look()
    assert found["engine"] == "kvferry" and found["works"]
    assert found["package"] is None, "mooncake is a namespace package"
    assert both.damaged() == []
    assert both.check() == "No broken requirements found."


@pytest.mark.parametrize("again", ["kvferry", "mooncake"])
def test_installing_one_of_them_anew_leaves_both_whole(empty: Environment, again: str) -> None:
    """As `pip install --upgrade` does where there is another version: the old files go, the new ones come."""
    for package in ("mooncake", "kvferry"):
        empty.install(package)
    empty.install(again, "--force-reinstall")
    found = empty.look()
    assert found["engine"] == "kvferry" and found["works"]
    assert found["buffer pool"] == "mooncake.store.BufferPool"
    assert empty.damaged() == []


def test_alone_it_makes_mooncake_a_namespace_package_with_an_engine_only(empty: Environment) -> None:
    empty.install("kvferry")
    found = empty.look()
    assert found["engine"] == "kvferry" and found["works"]
    assert found["package"] is None
    assert found["buffer pool"] == "ImportError"
    assert not (empty.packages / "mooncake" / "__init__.py").exists()


@pytest.mark.parametrize(("near", "far"), [("kvferry", "mooncake"), ("mooncake", "kvferry")])
def test_in_an_environment_on_top_of_another_kvferry_serves_in_whichever_it_is(
    wheels: Wheels, tmp_path: Path, near: str, far: str
) -> None:
    """As a virtual environment with --system-site-packages, or the user's packages, lies on top of the system's."""
    below, top = Environment(wheels, tmp_path / "below"), Environment(wheels, tmp_path / "top")
    below.install(far)
    top.install(near)
    top.put_on_top_of(below)
    found = top.look()
    assert found["engine"] == "kvferry" and found["works"]
    assert found["buffer pool"] == "mooncake.store.BufferPool"
    for environment, package in ((below, far), (top, near)):
        if package == "kvferry":
            environment.uninstall(package)
    assert top.look()["engine"] == "mooncake"


def test_in_a_folder_of_pythonpath_kvferry_serves_once_it_was_imported(wheels: Wheels, tmp_path: Path) -> None:
    """Python reads no .pth files there. docs/compatibility.md says so."""
    environment, folder = Environment(wheels, tmp_path / "environment"), tmp_path / "folder"
    environment.install("mooncake")
    environment.install("kvferry", "--target", str(folder))
    assert environment.look(PYTHONPATH=str(folder))["engine"] == "mooncake"
    found = environment.look(first="kvferry", PYTHONPATH=str(folder))
    assert found["engine"] == "kvferry" and found["works"]


def test_the_start_of_an_interpreter_imports_the_hook_and_nothing_more_of_kvferry(empty: Environment) -> None:
    empty.install("kvferry")
    loaded = empty.run("import sys; print(*sys.modules)").split()
    assert [name for name in loaded if "kvferry" in name or "mooncake" in name] == ["_kvferry_import_hook"]
