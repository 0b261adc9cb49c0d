"""Two log lines that a process writes once: kvferry serves mooncake.engine; mooncake.store cannot use its engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Callable

import kvferry
from kvferry import _library, _log

_logged: set[tuple[Callable[[], None], int]] = set()  # notices, and the processes that logged them


def serving() -> None:
    """Log that mooncake.engine is kvferry's."""
    _once(_serving)


def handing_out() -> None:
    """Where Mooncake's store is loaded, log that it cannot use the inner engine."""
    if "mooncake.store" in sys.modules:
        _once(_not_for_the_store)


def _once(notice: Callable[[], None]) -> None:
    key = (notice, os.getpid())  # a forked child has inherited its parent's entries
    if key not in _logged:
        _logged.add(key)
        notice()


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
