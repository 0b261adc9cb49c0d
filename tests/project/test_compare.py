"""The comparison with others: a run of it gives whole files, and it notices bytes that are wrong. Nothing is timed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from support import venvs

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from comparison import crowd, layouts
from comparison.case import Case, changing, plain, planned
from comparison.changes import BYTES, CHANGES
from comparison.pairs import LOOPBACK, EndError, Measured, Pair, Setup
from comparison.results import MOONCAKE, NIXL, OURS, PLAIN, Results
from comparison.sections import SWEEP, loopback_plan
from comparison.wanted import wanted

COMPARE = venvs.REPOSITORY / "bench" / "compare.py"
SECTIONS = ("loopback", "crowd", "growth", "crossing")
SHORTEST = ("--rounds", "1", "--seconds", "0.001", "--idle", "0.01", "--largest", "100", "--nixl", "none")
LIMIT = 600.0  # seconds that the run of the fixture may take

pytestmark = pytest.mark.timeout(LIMIT + 60)


def mooncake() -> str:
    """An interpreter with Mooncake, or what leaves it out."""
    try:
        return str(venvs.mooncake(venvs.VERSIONS[-1]))
    except venvs.Unavailable:
        return "none"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with ours, and with Mooncake where it can be had."""
    folder = tmp_path_factory.mktemp("bench")
    only = [text for section in SECTIONS for text in ("--only", section)]
    command = [sys.executable, str(COMPARE), *SHORTEST, *only, "--mooncake", mooncake()]
    done = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nixl: left out by --nixl none" in done.stdout
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> Any:
    return json.loads((output / "comparison.json").read_text())


def test_every_byte_of_every_case_was_compared(found: Any) -> None:
    assert not found["failures"]
    cases = [str(case) for case, names in loopback_plan(os.cpu_count() or 1).items() if OURS in names]
    assert {f"{OURS}: {case}" for case in cases} <= set(found["checked"]["loopback"])


def test_everything_is_in_the_json(found: Any) -> None:
    measured = {(entry["case"], entry["engine"]) for entry in found["cases"]}
    for case in loopback_plan(os.cpu_count() or 1):
        assert (str(case), OURS) in measured
    assert all(len(entry["rounds"]) == 1 and entry["rounds"][0]["bytes"] > 0 for entry in found["cases"])
    for bulk, short in itertools.product(crowd.BULKS, crowd.SHORT):
        by_count = found["crowd"][crowd.line(OURS, short, bulk)]
        assert set(by_count) == {"0", "1", "64"}
        assert all(each["p99"] >= each["p50"] > 0 for rounds in by_count.values() for each in rounds)
    assert {f"{OURS}: {bulk} of 64 peers" for bulk in crowd.BULKS} <= set(found["checked"]["many peers"])
    assert {"in flight", "regions, registering", "regions, transfer", "TIME_WAIT", "crossing"} <= set(found["series"])
    assert set(found["memory"][OURS]) == {"initiator", "target"}
    assert found["options"]["rounds"] == 1 and found["machine"]["ours"]
    assert all(row["reached"] in ("yes", "no", "not measured") for row in found["wanted"])


def test_the_report_has_every_case_and_its_plots(output: Path, found: Any) -> None:
    text = (output / "report.md").read_text()
    for case in loopback_plan(os.cpu_count() or 1):
        assert f"| {case} " in text
    for row in found["wanted"]:
        assert f"| {row['what']} " in text
    pictures = {path.stem: ElementTree.parse(path).getroot() for path in output.glob("*.svg")}
    assert {"blocks", "latency", "growth-in-flight", "growth-regions", "growth-time-wait"} <= set(pictures)
    for name, picture in pictures.items():
        assert f"({name}.svg)" in text
        assert picture.findall("{http://www.w3.org/2000/svg}polyline")


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    for name, value in venvs.ours().items():
        monkeypatch.setenv(name, value)
    ours = Pair(Setup(OURS, "ours", "ours"), {"ours": sys.executable}, tmp_path, LOOPBACK, 12 << 20)
    yield ours
    ours.close()


@pytest.mark.parametrize("operation", ["write", "read"])
def test_blocks_are_moved_and_a_difference_is_noticed(pair: Pair, operation: str) -> None:
    case = Case(operation, 4096, 20, threads=2)
    pair.check(case)
    with pair.awake():
        pair.targets[0].ask("prepare", case, "target", True)
        assert pair.initiator.ask("digest", case, "initiator") != pair.targets[0].ask("digest", case, "target")
    found = pair.move(case, 0.01)
    assert found.bytes > 0 and found.bytes % (4096 * 20) == 0


@pytest.mark.parametrize("change", [layouts.SHORT.change, "blocks of 128 to 16, HND to NHD"])
@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_change_of_layout_is_made_as_a_plan_as_a_list_and_as_plain_blocks(
    pair: Pair, operation: str, change: str
) -> None:
    case = changing(operation, change)
    for one in (planned(case), case, plain(case)):
        assert one.span <= 12 << 20
        pair.check(one)
        assert pair.move(one, 0.001).bytes % BYTES == 0


@pytest.mark.parametrize("change", CHANGES)
def test_the_runs_of_a_change_of_layout_are_as_long_as_it_says(change: str) -> None:
    """They cover as many bytes as move, none twice, and not many continue each other on both sides."""
    one = CHANGES[change]
    sources, destinations = one.ranges()
    assert len(sources) * one.run == BYTES
    for cache, places in ((one.source, sources), (one.destination, destinations)):
        ordered = sorted(places)
        assert all(b - a >= one.run for a, b in zip(ordered, ordered[1:]))
        assert ordered[-1] + one.run <= cache.size(one.tokens)
    pairs = list(zip(sources, destinations))
    joined = sum(b[0] - a[0] == one.run == b[1] - a[1] for a, b in zip(pairs, pairs[1:]))
    assert joined < len(pairs) / 100


def test_what_fails_in_a_process_is_told(pair: Pair) -> None:
    with pair.awake(), pytest.raises(EndError, match=r"^ours initiator: add_peers: TypeError: "):
        pair.initiator.ask("add_peers", 1)


def test_what_is_wanted_is_compared_with_what_was_measured() -> None:
    results = Results(idle={OURS: 0.5})
    (row,) = wanted(results, 2)
    assert row.row() == ["processor time of an idle pair, seconds a second", "0.01 at most", "0.50", "no", "-"]
    results.cases["loopback"] = {}
    assert "not measured" in {row.reached(row.measured) for row in wanted(results, 2)}


def test_requests_beside_many_peers_are_compared_with_those_beside_one() -> None:
    found = {count: [{"p50": 1.0, "p99": p99}] * 3 for count, p99 in ((0, 5.0), (1, 10.0), (64, 15.0))}
    lines = [crowd.line(OURS, short, bulk) for bulk, short in itertools.product(crowd.BULKS, crowd.SHORT)]
    results = Results(crowd=dict.fromkeys(lines, found))
    rows = [row for row in wanted(results, 2) if "beside 64 peers" in row.what]
    assert [(row.measured, row.reached(row.measured), row.direct) for row in rows] == [(1.5, "yes", None)] * 4
    assert crowd.report(results).count("64") == 4


def test_a_plan_is_compared_with_plain_blocks_and_with_the_fastest_list() -> None:
    results = Results()
    for name, rate in ((layouts.PLAN, 6), (layouts.BLOCKS, 8), (layouts.RANGES, 1), (MOONCAKE, 2), (NIXL, 0.5)):
        results.add(layouts.ON_LOOPBACK, layouts.SHORT, name, Measured(1, int(rate * 1e9), 0, 0, 0))
    results.add_to_series(layouts.POSTING, layouts.POST, layouts.SHORT.blocks, 300)
    rows = {row.what: row for row in wanted(results, 2)}
    compared = f"{layouts.ON_LOOPBACK}, {layouts.SHORT}: plan"
    assert rows[f"{compared} / plain blocks"].row()[1:4] == ["0.50 at least", "0.75", "yes"]
    assert rows[f"{compared} / the best list of the others ({MOONCAKE})"].row()[1:4] == ["5.00 at least", "3.00", "no"]
    assert rows[f"{compared} / its ranges as a list, which kvferry joins"].row()[1:4] == ["-", "6.00", "-"]
    (posted,) = (row for what, row in rows.items() if what.startswith("ms to start"))
    assert posted.row()[1:4] == ["1.00 at most", "0.30", "yes"]


def test_the_sizes_are_those_that_others_are_measured_with() -> None:
    plan = loopback_plan(2)
    for block, blocks in SWEEP.items():
        assert {OURS, MOONCAKE, PLAIN[4]} <= set(plan[Case("write", block, blocks)])
