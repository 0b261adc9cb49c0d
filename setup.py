"""The wheel: the Python packages, the library, which they open with ctypes, and the simulated devices.

So one wheel serves every CPython.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

from build_library import SIMULATORS, build


class PackagesAndLibrary(build_py):
    """Copies the packages and kvferry.pth, and builds the libraries into kvferry/_lib."""

    def run(self) -> None:
        if self.editable_mode:
            packages = Path(__file__).parent / "python"
        else:
            packages = Path(self.build_lib)
            shutil.rmtree(packages, ignore_errors=True)  # or files that are no longer in the project get into the wheel
        super().run()
        if not self.editable_mode:
            shutil.copy(Path(__file__).parent / "python" / "kvferry.pth", packages)
        libraries = packages.absolute() / "kvferry" / "_lib"
        build("shared", libraries / "libtransfer_engine.so")
        for kind, (name, _) in SIMULATORS.items():
            build(kind, libraries / "sim" / name)


class PlatformWheel(bdist_wheel):
    """A wheel of one platform that needs no interface of CPython's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Tells setuptools that there is machine code in it."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=BinaryDistribution,
    cmdclass={"build_py": PackagesAndLibrary, "bdist_wheel": PlatformWheel},
    options={"build": {"build_base": "build/wheel"}},
)
