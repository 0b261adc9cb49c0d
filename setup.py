"""The wheel: the Python packages, the library, which they open with ctypes, and the simulated devices.

So one wheel serves every CPython. `bdist_wheel --plat-name manylinux_2_17_MACHINE` makes a portable one for x86_64 or
aarch64, from either; scripts/build_wheels.py does so for PyPI.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import ExecError

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

import pypi_readme
from build_library import PORTABLE, SIMULATORS, BuildError, build, find_go
from go_modules import FetchError

REPOSITORY = Path(__file__).parent


class PackagesAndLibrary(build_py):
    """Copies the packages and kvferry.pth, and builds the libraries into kvferry/_lib."""

    def run(self) -> None:
        packages = Path(self.build_lib)
        if self.editable_mode:
            packages = REPOSITORY / "python"
        else:
            shutil.rmtree(packages, ignore_errors=True)  # or files that are no longer in the project get into the wheel
        libraries = packages.absolute() / "kvferry" / "_lib"
        wheel = self.get_finalized_command("bdist_wheel")
        assert isinstance(wheel, PlatformWheel)
        try:
            build("shared", libraries / "libtransfer_engine.so", wheel.portable_machine)
            for kind, (name, _) in SIMULATORS.items():
                build(kind, libraries / "sim" / name, wheel.portable_machine)
        except (BuildError, FetchError) as error:
            raise ExecError(str(error)) from error  # which setuptools tells without a traceback
        commit = source_commit()
        if commit and not self.editable_mode:
            (libraries / "commit").write_text(f"{commit}\n", encoding="ascii")
        super().run()
        if not self.editable_mode:
            shutil.copy(REPOSITORY / "python" / "kvferry.pth", packages)


def source_commit() -> str:
    """The commit of these sources, for `kvferry info`; "" where they are no git repository."""
    if not (REPOSITORY / ".git").exists():  # or git would look for one around them
        return ""
    states = []
    for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        if done.returncode != 0:
            return ""
        states.append(done.stdout.strip())
    commit, changes = states
    return f"{commit} and changes" if changes else commit


class PlatformWheel(bdist_wheel):
    """A wheel of one platform that needs no interface of CPython's."""

    @property
    def portable_machine(self) -> Optional[str]:
        """The machine that a portable wheel is for; None where it is for this machine."""
        prefix, _, machine = str(self.plat_name).partition(f"{PORTABLE}_")
        return None if prefix else machine

    def get_tag(self) -> tuple[str, str, str]:
        machine = self.portable_machine
        # Its other name is the one that a pip before 20.3 knows.
        return "py3", "none", f"{self.plat_name}.manylinux2014_{machine}" if machine else super().get_tag()[2]

    def write_wheelfile(self, *arguments: str, **options: str) -> None:
        """Write the last file, and give all files modes that do not depend on who builds."""
        super().write_wheelfile(*arguments, **options)
        for path in Path(str(self.bdist_dir)).rglob("*"):
            path.chmod(0o755 if path.is_dir() or ".so" in path.suffixes else 0o644)


class SourcesAndModules(sdist):
    """Adds the sources of the Go modules, so that building from PyPI's files fetches nothing from elsewhere."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        go = find_go()
        if go is None:
            raise ExecError("a source distribution takes Go, which was not found")
        command = [go, "mod", "vendor", "-o", str(Path(base_dir, "vendor").absolute())]
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0:
            raise ExecError("Go modules could not be fetched; the variable GOPROXY says from where they are")


class BinaryDistribution(Distribution):
    """Tells setuptools that there is machine code in it."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=BinaryDistribution,
    cmdclass={"build_py": PackagesAndLibrary, "bdist_wheel": PlatformWheel, "sdist": SourcesAndModules},
    options={"build": {"build_base": "build/wheel"}},
    long_description=pypi_readme.text(),
    long_description_content_type="text/markdown",
)
