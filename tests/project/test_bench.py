"""What the benchmark of NPUs is made of: its processes move what they say, and its report can be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from cases import GATHERED, NPU_TO_HOST, ONE_BY_ONE, all_cases
from figures import Figures, Peak, Pipelining, Rounds
from kvferry import simulator
from nodes import Measured, Node, NodeError, Work
from report import Comparison, comparisons, tables, write_files

SIZE = 1 << 20


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """An initiator with an NPU's memory and a target with the host's."""
    settings = {"KVFERRY_ASCENDCL": simulator.library()}
    initiator = Node("initiator", "npu:0", SIZE, "127.0.0.1", settings)
    target = Node("target", "host", SIZE, "127.0.0.1", settings)
    initiator.ask("connect", target.ask("place"))
    yield initiator, target
    initiator.close()
    target.close()


def same(nodes: tuple[Node, Node], work: Work) -> bool:
    initiator, target = nodes
    here: bytes = initiator.ask("digest", "initiator", work)
    there: bytes = target.ask("digest", "target", work)
    return here == there


@pytest.mark.parametrize("operation", ["write", "read"])
@pytest.mark.parametrize("stride", [4096, 8192])
def test_blocks_are_moved_and_a_difference_is_noticed(nodes: tuple[Node, Node], operation: str, stride: int) -> None:
    work = Work(operation, 4096, 100, 32, 2, stride)
    for node in nodes:
        node.ask("fill")
    assert not same(nodes, work)
    nodes[0].ask("move_once", work)
    assert same(nodes, work)
    measured = nodes[0].ask("move", work, 0.01)
    assert measured.bytes > 0 and measured.bytes % 4096 == 0
    assert measured.seconds >= 0.01 and measured.rate > 0


def test_a_copy_that_is_sent_afterwards_has_the_same_bytes(nodes: tuple[Node, Node]) -> None:
    work = Work("write", 4096, 100, 32, 2, 4096)
    nodes[1].ask("fill")
    nodes[0].ask("copy_then_move", work, 0.1)
    assert same(nodes, work)


def test_what_fails_in_a_process_is_told(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(NodeError, match=r"^initiator: simulator_cost: RuntimeError: .*nonsense"):
        nodes[0].ask("simulator_cost", "nonsense")


def figures(rate: float) -> Figures:
    """As if every case had run at that rate."""
    cases = {case: [Measured(1.0, int(rate * 1e9), 0.5)] * 3 for case in all_cases()}
    peaks = {"initiator": Peak(1 << 30, 1 << 30, 1 << 20, 0), "target": Peak(1 << 30, 2 << 30, 1 << 27, 0)}
    sizes = {case.work.block for case in cases}
    staging = {
        (direction, size, way): 2.0 for direction in ("out", "in") for size in sizes for way in (GATHERED, ONE_BY_ONE)
    }
    return Figures(Rounds(cases), 0.1, Pipelining(2.0, [3.0], [2.0]), Rounds(cases), peaks, staging)


def test_the_tables_have_every_pair_and_block() -> None:
    text = "\n".join(tables(figures(2.0)))
    for column in ("host -> host", "npu -> host", "host -> npu", "npu -> npu", "npu <- host", GATHERED, ONE_BY_ONE):
        assert f" {column} " in text
    assert text.count("| 16 MiB  |") == 5  # READ and WRITE, over two networks, and the processor's time


def test_what_is_wanted_is_compared_with_what_was_measured() -> None:
    found = {comparison.what: comparison for comparison in comparisons(figures(2.0))}
    assert found["loopback, 1 MiB: npu -> host / host -> host"] == (
        "loopback, 1 MiB: npu -> host / host -> host",
        1,
        0.9,
        False,
    )
    assert found["page-locked memory of the target / its pool"].row()[1:] == ["2.00", "1.00 at most", "no"]
    assert Comparison("", 1.4, 1.4).row()[3] == "yes"


def test_the_files_can_be_read(tmp_path: Path) -> None:
    write_files(tmp_path, figures(2.0), comparisons(figures(2.0)), {"npu": "none"})
    found = json.loads((tmp_path / "heterogeneous.json").read_text())
    case = next(c for c in found["loopback"] if c["initiator"] == NPU_TO_HOST.initiator and c["way"] == ONE_BY_ONE)
    assert case["GBps"] == [2.0] * 3
    for name, lines in (("heterogeneous", 3), ("staging", 2)):
        picture = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == lines
