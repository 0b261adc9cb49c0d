"""What the log says once in the life of a process: who serves mooncake.engine, and what cannot use it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Callable

import kvferry
from kvferry import _library, _log

_told: set[tuple[Callable[[], None], int]] = set()  # notices, and processes that gave them


def serving() -> None:
    """Say that mooncake.engine is kvferry's."""
    _once(_serving)


def handing_out() -> None:
    """Say, where Mooncake's store is loaded, that the inner engine is of no use to it."""
    if "mooncake.store" in sys.modules:
        _once(_not_for_the_store)


def _once(tell: Callable[[], None]) -> None:
    key = (tell, os.getpid())  # a forked child has inherited what its parent told
    if key not in _told:
        _told.add(key)
        tell()


def _serving() -> None:
    module = Path(__file__).with_name("__init__.py")
    _log.info(
        "kvferry %s serves mooncake.engine, over TCP: %s, with %s", kvferry.__version__, module, _library.in_use()
    )


def _not_for_the_store() -> None:
    _log.warning(
        "get_engine: this is kvferry's engine, which mooncake.store cannot use. Leave out the argument engine of"
        " setup(), and the store makes an engine of its own. SGLang does so with SGLANG_HICACHE_MOONCAKE_REUSE_TE=0"
    )
