"""The machine's topology in Mooncake's form: for each memory node and GPU, the RDMA devices that are near."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvferry import _log
from kvferry.gpu import visible_devices

NODES = Path("/sys/devices/system/node")


def topology() -> str:
    """JSON: location -> [preferred devices, available devices]. The lists are empty: kvferry uses no RDMA devices.
    If the file that MC_CUSTOM_TOPO_JSON names is not empty, its JSON is returned instead."""
    return json.dumps(_custom() or {location: [[], []] for location in _locations()}, indent=1)


def _locations() -> Iterator[str]:
    yield from (f"cpu:{node}" for node in _memory_nodes())
    yield from (f"cuda:{device}" for device in range(visible_devices()))


def _custom() -> Any:
    path = os.environ.get("MC_CUSTOM_TOPO_JSON")
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text) if text.strip() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        _log.warning("MC_CUSTOM_TOPO_JSON: %s cannot be used: %s", path, e)
        return None


def _memory_nodes() -> list[int]:
    try:
        names = [entry.name for entry in NODES.iterdir()]
    except OSError:
        names = []
    nodes = sorted(int(name[4:]) for name in names if re.fullmatch(r"node\d+", name))
    return nodes or [0]
