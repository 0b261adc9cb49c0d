"""kvferry topology."""

from __future__ import annotations

import json
from pathlib import Path

from support.commands import result, run


def test_the_memory_nodes_are_printed_in_mooncakes_form() -> None:
    status, out, err = run("topology")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["cpu:0"] == [[], []]
    assert result("topology") == found


def test_a_file_of_the_users_is_printed_instead(tmp_path: Path) -> None:
    file = tmp_path / "topology.json"
    file.write_text('{"cpu:7": [["mlx5_0"], []]}')
    assert result("topology", MC_CUSTOM_TOPO_JSON=str(file)) == {"cpu:7": [["mlx5_0"], []]}
