"""What is tested under real programs, where they are installed; nothing else asks for gigabytes."""

from __future__ import annotations

import pytest

from real.programs import installed

TESTS = {"test_sglang.py": "sglang", "test_vllm_ascend.py": "sglang", "test_vllm.py": "vllm"}
MISSING = sorted({name for name in TESTS.values() if not installed(name)})

collect_ignore = [test for test, name in TESTS.items() if name in MISSING]  # those that are named are run all the same


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in MISSING:
        terminalreporter.write_line(f"Not run: the tests under {name}, which `make test-{name}` installs and runs")
