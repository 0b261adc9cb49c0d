"""The check of kvferry on a machine with Ascend NPUs: `make test-npu`. Where there are none it checks simulated ones.

1. what the machine has: processors, CANN, NPUs;
2. the demo;
3. the tests of device memory; on real devices without those that need simulated ones;
4. the benchmark.

All of them run, whatever the others come to. What they print goes to standard output and to build/npu-report.txt, a
file to be sent to the developers of kvferry. The exit status is 1 when something failed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from kvferry import __version__
from kvferry.demo import DemoError, find_npus
from kvferry.npu import TOOLKITS, VARIABLE, AscendCL

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = REPOSITORY / "build" / "npu-report.txt"
LIMIT = 1800.0  # seconds that a step may take

STEPS: dict[str, tuple[str, ...]] = {
    "demo": ("-m", "kvferry", "demo"),
    "tests": ("-m", "pytest", "-q", "--tb=short", "--maxfail=20", "tests/heterogeneous"),
    "benchmark": ("bench/heterogeneous.py", "--rounds", "3"),
}

# Functions of AscendCL that kvferry can do without.
OPTIONAL = ("aclrtPointerGetAttributes", "aclrtMemcpyBatchAsync", "aclrtSynchronizeEventWithTimeout")


class Report:
    """Standard output, and a file with the same text."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def say(self, text: str) -> None:
        print(text, flush=True)
        print(text, file=self._file, flush=True)

    def run(self, command: Sequence[str], settings: Mapping[str, str]) -> int:
        """Run a command and show what it prints; its exit status."""
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        too_long = threading.Timer(LIMIT, process.kill)
        too_long.start()
        with process:
            for line in process.stdout:
                self.say(line.rstrip())
        too_long.cancel()
        return process.returncode


def machine() -> Iterator[str]:
    """What the machine has, a line each."""
    python, system = platform.python_version(), platform.platform()
    yield f"kvferry {__version__}, Python {python}, {system}, {os.cpu_count()} processors"
    for variable in (VARIABLE, *TOOLKITS):
        yield f"{variable}={os.environ.get(variable, '')}"
    for home in filter(None, map(os.environ.get, TOOLKITS)):
        for file in sorted(Path(home).glob("*version*.*")):
            yield f"{file}: {' '.join(file.read_text(errors='replace').split())}"


def runtime(acl: AscendCL) -> Iterator[str]:
    """What AscendCL has, a line each."""
    yield f"AscendCL: {acl.path}, {acl.devices()} devices"
    for name in OPTIONAL:
        yield f"{name}: {'yes' if hasattr(acl.library, name) else 'no'}"


def check(report: Report) -> int:
    for line in machine():
        report.say(line)
    if shutil.which("npu-smi"):
        report.run(["npu-smi", "info"], {})
    try:
        npus = find_npus()
    except DemoError as e:
        report.say(str(e))
        return 1
    report.say(npus.told)
    acl = AscendCL()
    for line in runtime(acl):
        report.say(line)
    results = [step(report, name, arguments, {VARIABLE: acl.path}) for name, arguments in STEPS.items()]
    report.say(f"\n{npus.told}")
    for name, result in zip(STEPS, results):
        report.say(f"{name}: {'passed' if result == 0 else f'FAILED with status {result}'}")
    return 1 if any(results) else 0


def step(report: Report, name: str, arguments: Sequence[str], settings: Mapping[str, str]) -> int:
    start = time.monotonic()
    report.say(f"\n== {name}: python {' '.join(arguments)}")
    result = report.run([sys.executable, *arguments], settings)
    report.say(f"== {name}: status {result} after {time.monotonic() - start:.0f} s")
    return result


def main() -> int:
    REPORT.parent.mkdir(exist_ok=True)
    with REPORT.open("w", encoding="utf-8") as file:
        result = check(Report(file))
    print(f"The report is in {REPORT}")
    return result


if __name__ == "__main__":
    sys.exit(main())
