"""get_local_topology(), from which clients decide whether there is RDMA, and learn of GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvferry import simulator
from mooncake.engine import TransferEngine


@pytest.fixture(autouse=True)
def no_custom_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MC_CUSTOM_TOPO_JSON", raising=False)


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's GPUs are simulated ones: two."""
    monkeypatch.setenv("KVFERRY_CUDA", simulator.library("cuda"))


def nodes() -> dict[str, list[list[str]]]:
    found = Path("/sys/devices/system/node").glob("node[0-9]*")
    return {f"cpu:{number}": [[], []] for number in sorted(int(n.name[4:]) for n in found) or [0]}


def test_every_memory_node_and_gpu_is_listed_with_no_devices(fresh_engine: TransferEngine) -> None:
    listed = json.loads(fresh_engine.get_local_topology())
    assert listed == {**nodes(), "cuda:0": [[], []], "cuda:1": [[], []]}
    assert list(listed) == [*nodes(), "cuda:0", "cuda:1"]
    assert fresh_engine.get_local_topology(device_name="mlx5_0") == fresh_engine.get_local_topology()


def test_without_a_gpu_there_are_memory_nodes(fresh_engine: TransferEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_CUDA", "/nonexistent.so")
    assert json.loads(fresh_engine.get_local_topology()) == nodes()


def test_a_custom_file_stands_in_parsed_and_printed_again(
    fresh_engine: TransferEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    custom = {"cpu:0": [["mlx5_0"], []]}
    (tmp_path / "topology").write_text(json.dumps(custom, indent=7))
    monkeypatch.setenv("MC_CUSTOM_TOPO_JSON", str(tmp_path / "topology"))
    assert json.loads(fresh_engine.get_local_topology()) == custom


@pytest.mark.parametrize("text", ["", "  \n", "{", "[" * 100_000, "\udcff"])
def test_a_custom_file_that_is_empty_or_no_good_is_as_if_there_were_none(
    fresh_engine: TransferEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    discovered = fresh_engine.get_local_topology()
    (tmp_path / "topology").write_text(text, errors="surrogateescape")
    monkeypatch.setenv("MC_CUSTOM_TOPO_JSON", str(tmp_path / "topology"))
    assert fresh_engine.get_local_topology() == discovered
    monkeypatch.setenv("MC_CUSTOM_TOPO_JSON", str(tmp_path / "missing"))
    assert fresh_engine.get_local_topology() == discovered
