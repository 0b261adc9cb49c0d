"""Modules in the place of ones that are not installed, for programs that need little of them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Optional


class Anything(type):
    """The class of a stand-in's contents: each is a class that can be called and annotated with, and has every name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Anything(name, (), {})
        setattr(cls, name, made)
        return made

    def __getitem__(cls, key: Any) -> Anything:
        return cls


class StandIn(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Anything(name, (), {})
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of some packages."""

    def __init__(self, packages: Sequence[str], contents: dict[str, dict[str, Any]]) -> None:
        self._packages = packages
        self._contents = contents

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if name.split(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._contents.get(module.__name__, {}))


def stand_in(packages: Sequence[str], contents: dict[str, dict[str, Any]]) -> None:
    """Let every import from the packages succeed; `contents` has what is in some modules, by their names."""
    sys.meta_path.insert(0, Finder(packages, contents))
