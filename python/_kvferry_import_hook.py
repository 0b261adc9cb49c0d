"""Makes kvferry's mooncake.engine the one that is imported, in whichever folder Mooncake's own package lies.

In one folder, Python itself chooses kvferry's: the package mooncake/engine/ comes before the extension module
mooncake/engine.so, whichever was installed first. In two folders, such as those of a virtual environment and of the
system, it would choose Mooncake's: only Mooncake's package has an __init__.py, which ends the search for mooncake.

kvferry.pth imports this module whenever an interpreter starts, so it imports as little as it can. kvferry imports it,
too, for folders of sys.path whose .pth files Python does not read.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing is not imported for it
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAME = "mooncake.engine"
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mooncake")


class EngineFinder:
    """Finds mooncake.engine in kvferry's folder, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib asks for it. None where kvferry's module is not there, such as after it was uninstalled."""
        if name != NAME:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, [FOLDER], target)
        return spec if spec is not None and spec.loader is not None else None


sys.meta_path.insert(0, EngineFinder())
