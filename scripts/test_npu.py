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
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from device_report import DEVICE_TESTS, REPOSITORY, Part, Report, first_lines, python, system
from kvferry.demo.devices import DemoError, find_npus
from kvferry.npu import TOOLKITS, VARIABLE, AscendCL

REPORT = REPOSITORY / "build" / "npu-report.txt"
LIMIT = 1800.0  # seconds that a part may take

PARTS: dict[str, tuple[str, ...]] = {
    "demo": python("-m", "kvferry", "demo"),
    "tests": python("-m", "pytest", "-q", "--tb=short", "--maxfail=20", *DEVICE_TESTS),
    "benchmark": python("bench/heterogeneous.py", "--rounds", "3"),
}

# Functions of AscendCL that kvferry can do without.
OPTIONAL = (
    "aclrtPointerGetAttributes",
    "aclrtMemcpyBatchAsync",
    "aclrtSynchronizeEventWithTimeout",
    "aclrtDeviceCanAccessPeer",
    "aclrtDeviceEnablePeerAccess",
)


def machine() -> Iterator[str]:
    """What the machine has, a line each."""
    yield system()
    for variable in (VARIABLE, *TOOLKITS):
        yield f"{variable}={os.environ.get(variable, '')}"
    for home in filter(None, map(os.environ.get, TOOLKITS)):
        for file in sorted(Path(home).glob("*version*.*")):
            yield f"{file}: {' '.join(file.read_text(errors='replace').split())}"
    if shutil.which("npu-smi"):
        yield from first_lines(["npu-smi", "info"])


def runtime(acl: AscendCL) -> Iterator[str]:
    """What AscendCL has, a line each."""
    yield f"AscendCL: {acl.path}, {acl.devices()} devices"
    for name in OPTIONAL:
        yield f"{name}: {'yes' if hasattr(acl.library, name) else 'no'}"


def check(report: Report) -> int:
    report.tell(machine())
    try:
        npus = find_npus()
    except DemoError as e:
        report.say(str(e))
        return 1
    report.say(npus.told)
    acl = AscendCL()
    report.tell(runtime(acl))
    results = [report.run(name, Part(command, LIMIT, {VARIABLE: acl.path})) for name, command in PARTS.items()]
    report.say(f"\n{npus.told}")
    report.say_results()
    return 0 if all(results) else 1


def main() -> int:
    REPORT.parent.mkdir(exist_ok=True)
    with REPORT.open("w", encoding="utf-8") as file:
        result = check(Report(file))
    print(f"The report is in {REPORT}")
    return result


if __name__ == "__main__":
    sys.exit(main())
