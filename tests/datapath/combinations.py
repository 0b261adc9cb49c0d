"""In which combinations of path, memory and fault the tests of this folder run.

A test runs by each path: TCP, and what engines on one host use among themselves. A test that asks for the fixture
`memory`, itself or by way of `world`, runs with the memory of the engine under test on each kind of place. A test file
is one fault, or none. LEFT_OUT names the combinations that are not run, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from support.paths import SAMEHOST, TCP
from support.venvs import VERSIONS

MEMORIES = {"host": "host", "npu": "npu:0", "gpu": "cuda:0"}
"""By the names that tests show, the places of memory; see support/regions.py. Devices are simulated ones, or real ones
where the environment names their library."""


@dataclass(frozen=True)
class Case:
    """A test in one combination."""

    file: str
    test: str
    path: str
    params: Mapping[str, Any]

    @classmethod
    def of(cls, item: pytest.Function) -> Case:
        params = item.callspec.params
        return cls(item.path.stem.removeprefix("test_"), item.originalname, str(params["path"]), params)

    @property
    def on_device(self) -> bool:
        """Whether the memory of the engine under test is a device's."""
        return str(self.params.get("memory", "host")) != "host"

    @property
    def other_framing(self) -> bool:
        """Whether the engine, or who connects to it, uses another framing than version 2."""
        sides: str = self.params.get("sides", "")
        framing, version = self.params.get("framing", "version 2"), self.params.get("version", 2)
        return framing != "version 2" or version == 0 or sides.endswith("v1")

    @property
    def older(self) -> bool:
        """Whether the libraries of devices are older ones."""
        return any("older" in str(self.params.get(name, "")) for name in ("release", "sides", "stage"))

    @property
    def mooncake(self) -> str:
        """The version of Mooncake that the other engine is; "" for one of ours."""
        kind: str = self.params.get("kind", "")
        return kind if kind in VERSIONS else ""


OF_RAW_TARGETS = (
    "test_a_peer_that_moved_its_data_port_is_found_again",
    "test_a_target_that_stalls_does_not_keep_the_blocks_from_others",
    "test_waiting_for_a_stalled_target_uses_no_processor",
    "test_waiting_for_a_stuck_peer_uses_no_processor",
)
BEFORE_A_REQUEST = (
    "test_bytes_that_are_no_request_leave_others_served",
    "test_connections_that_stay_half_open_keep_nobody_else_waiting",
)

LEFT_OUT: dict[str, Callable[[Case], bool]] = {
    "targets made of sockets take connections by TCP alone": lambda c: (
        c.path == SAMEHOST and (c.file in ("bad_targets", "given_up") or c.test in OF_RAW_TARGETS)
    ),
    "Mooncake's engines are reached by TCP alone": lambda c: (
        c.path == SAMEHOST and (c.mooncake != "" or "_mooncake_" in c.test)
    ),
    "other framings than version 2 exist on TCP alone": lambda c: c.path == SAMEHOST and c.other_framing,
    "an engine's own segment is copied, by no path and in no framing": lambda c: (
        c.test == "test_blocks_move_between_places_of_one_engine" and (c.path == SAMEHOST or c.other_framing)
    ),
    "older libraries of devices copy in other ways, but send in the same": lambda c: c.path == SAMEHOST and c.older,
    "what needs more than 32 bits needs more than 31": lambda c: (
        c.path == SAMEHOST and c.file == "large" and c.params["length"] < 1 << 32
    ),
    "only engines on one host copy from each other's memory": lambda c: (
        c.path == TCP and c.file in ("permit", "process_ids", "samehost", "stuck")
    ),
    "host memory takes no staging blocks": lambda c: c.file == "stalled_peers" and not c.on_device,
    "a connection that has named no memory concerns none": lambda c: (
        c.on_device and (c.file == "hello" or c.test in BEFORE_A_REQUEST)
    ),
    "every path and framing has one way to look for registered memory": lambda c: (
        c.on_device and c.test.startswith("test_a_range_") and (c.path == SAMEHOST or c.other_framing)
    ),
    "a target copies from another process to host memory alone": lambda c: c.on_device and c.file == "permit",
    "pages that do not come are the host's": lambda c: c.on_device and c.file == "stuck",
    "one Mooncake of each framing stands for all where memory is staged": lambda c: (
        c.on_device and c.mooncake not in ("", "0.3.8", "0.3.13")
    ),
    "Mooncake's memory is the host's": lambda c: c.on_device and c.mooncake != "" and c.file == "overtaking",
    "staged WRITEs take the same steps whatever their size": lambda c: (
        c.file == "overtaking" and c.on_device and c.params["size"] != 64 << 10
    ),
    "of a Mooncake target a part is quarantined as the whole is": lambda c: (
        c.mooncake != "" and c.params.get("whole", False)
    ),
    "a transfer that is staged on both sides or on none has all steps that one side has": lambda c: (
        "there" in c.params and c.file == "peer_death" and c.on_device != (c.params["there"] != "host")
    ),
}


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Have a test run in all combinations of path and memory that concern it."""
    metafunc.parametrize("path", [TCP, SAMEHOST], indirect=True, scope="module")
    if "memory" in metafunc.fixturenames:
        kinds = [pytest.param(kind, marks=[pytest.mark.devices] * (kind != "host")) for kind in MEMORIES]
        metafunc.parametrize("memory", kinds, indirect=True, scope="module")


def leave_out(config: pytest.Config, items: list[pytest.Item], folder: Path) -> None:
    """Deselect the tests of a folder whose combination is left out."""
    left_out = [item for item in items if folder in item.path.parents and not makes_sense(item)]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


def makes_sense(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    case = Case.of(item)
    return not any(left_out(case) for left_out in LEFT_OUT.values())
