"""The staging of simulated devices without a network: runs the Go benchmarks beside this file.

`python bench/staging.py` compares how blocks are copied after a device was measured with each fixed way, on devices of
which copies cost different things. `make bench-npu` uses measure().
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path

from tables import table

FOLDER = Path(__file__).parent
LINE = re.compile(
    r"^BenchmarkStaging/(out|in)/(\d+)/(\S+?)(?:-\d+)?\s+\d+\s+[\d.]+ ns/op\s+([\d.]+) MB/s", re.MULTILINE
)
CHOICE = re.compile(
    r"^BenchmarkChoices/(\S+?)/(out|in)/(\d+)_x_(\d+)/(\w+)(?:-\d+)?\s.*\s([\d.]+) device-GB/s", re.MULTILINE
)
MEASURED = "auto"
FIXED = ("single", "batch", "gather")

Rates = dict[tuple[str, int, str], float]
"""GB/s by direction ("out" of the device or "in"), block size, and way of copying as in cases.py."""

Shape = tuple[str, str, int, int]
"""The costs' profile, the direction, the size of a block in bytes, and the number of blocks of a transfer."""

Choices = dict[Shape, dict[str, list[float]]]
"""GB/s of the device alone by its costs, for each setting of KVFERRY_DEVICE_COPY and each round."""


def go_benchmark(name: str, seconds: float) -> str:
    """Return what the benchmark printed. subprocess.CalledProcessError when it fails."""
    command = ["go", "test", "-run", "^$", "-bench", f"^{name}$", "-benchtime", f"{seconds}s", "."]
    return subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(seconds: float) -> Rates:
    """Nothing where there is no Go. subprocess.CalledProcessError when the benchmark fails."""
    if shutil.which("go") is None:
        return {}
    return {
        (direction, int(block), way.replace("_", " ")): float(rate) / 1e3
        for direction, block, way, rate in LINE.findall(go_benchmark("BenchmarkStaging", seconds))
    }


def choices(rounds: int, seconds: float) -> Choices:
    """Measure all choices in rounds. In a round those of one shape follow each other."""
    found: Choices = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds):
        for profile, direction, block, count, setting, rate in CHOICE.findall(
            go_benchmark("BenchmarkChoices", seconds)
        ):
            found[profile, direction, int(block), int(count)][setting].append(float(rate))
    return found


def row(shape: Shape, settings: dict[str, list[float]]) -> list[str]:
    """The medians for each setting, and the ratio of what was measured to the best fixed way."""
    rates = {name: statistics.median(values) for name, values in settings.items()}
    profile, direction, block, count = shape
    ratio = rates[MEASURED] / max(rates[name] for name in FIXED)
    shown = [f"{rates[name]:.2f}" for name in (*FIXED, MEASURED)]
    return [f"{profile}, {direction}", f"{block >> 10} KiB x {count}", *shown, f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways of copying blocks on simulated devices.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.02, metavar="S", help="of each case (%(default)s)")
    options = parser.parse_args()
    head = ["costs", "blocks", *FIXED, MEASURED, "to the best"]
    print(f"GB/s of the simulated device alone, medians of {options.rounds} rounds; {MEASURED} to the best fixed way.")
    print(table(head, [row(*found) for found in choices(options.rounds, options.seconds).items()]))


if __name__ == "__main__":
    main()
