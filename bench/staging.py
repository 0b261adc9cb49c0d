"""The staging of simulated NPUs without a network: runs the Go benchmark beside this file."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
LINE = re.compile(
    r"^BenchmarkStaging/(out|in)/(\d+)/(\S+?)(?:-\d+)?\s+\d+\s+[\d.]+ ns/op\s+([\d.]+) MB/s", re.MULTILINE
)

Rates = dict[tuple[str, int, str], float]
"""GB/s by direction ("out" of the device or "in"), block size, and way of copying as in cases.py."""


def measure(seconds: float) -> Rates:
    """Nothing where there is no Go. subprocess.CalledProcessError when the benchmark fails."""
    if shutil.which("go") is None:
        return {}
    command = ["go", "test", "-run", "^$", "-bench", "^BenchmarkStaging$", "-benchtime", f"{seconds}s", "."]
    done = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=True)
    return {
        (direction, int(block), way.replace("_", " ")): float(rate) / 1e3
        for direction, block, way, rate in LINE.findall(done.stdout)
    }
