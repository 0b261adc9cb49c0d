"""Mooncake's package name, so that programs which import mooncake.engine find kvferry.

Other distributions may bring further submodules of the same package, such as mooncake.store; they still import.
"""

from pkgutil import extend_path
from typing import NoReturn

__path__ = extend_path(__path__, __name__)


def __getattr__(name: str) -> NoReturn:
    if name == "store":
        raise AttributeError("mooncake.store is not part of kvferry, which provides mooncake.engine")
    raise AttributeError(f"module 'mooncake' has no attribute {name!r}")
