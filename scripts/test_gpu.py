"""The check of kvferry on a machine with NVIDIA GPUs: `make test-gpu`.

1. what the machine has: processors, driver, GPUs, PyTorch;
2. the demo;
3. tests of GPU memory, with PyTorch's tensors where it is installed, and with Mooncake's build for CUDA as the peer
   where KVFERRY_MOONCAKE_CUDA names a folder with it;
4. the tests of device memory that do not need simulated devices;
5. the kernels of the package cuda on GPU 0, where Go is installed;
6. compute-sanitizer, where it is installed, over moves of GPU memory;
7. the benchmark.

All of them run, whatever the others come to, each for a limited time. What they print goes to standard output and to
build/gpu-report.txt, and what is known of each to build/gpu-report.json: files to be sent to the developers of kvferry.
The exit status is 1 when something failed. Nothing is installed: the interpreter has kvferry and pytest, or finds them
by PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from device_report import DEVICE_TESTS, REPOSITORY, Part, Report, first_lines, python, system
from kvferry.gpu import CUDA, FILE, VARIABLE, GpuError

BUILD = REPOSITORY / "build"
BENCHMARK = BUILD / "bench" / "gpu.json"
MANY_THREADS = {"OMP_NUM_THREADS": "2"}  # of PyTorch in each of many processes
TORCH = """
import torch
print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPUs")
"""
SMI = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"]
SANITIZER = "compute-sanitizer"
SANITIZER_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")

# Functions of the driver that kvferry can do without.
OPTIONAL = (
    "cuMemcpyBatchAsync",
    "cuMemcpyBatchAsync_v2",
    "cuStreamIsCapturing",
    "cuDeviceCanAccessPeer",
    "cuCtxEnablePeerAccess",
    "cuMemcpyPeerAsync",
)


def pytest(*arguments: str) -> tuple[str, ...]:
    return python("-m", "pytest", "-q", "--tb=short", "--maxfail=30", "-p", "no:cacheprovider", *arguments)


def parts(options: argparse.Namespace, library: str) -> dict[str, Part]:
    """What there is to run, in this order."""
    tests = {**MANY_THREADS, "KVFERRY_TESTS_CUDA": library}
    found = {
        "demo": Part(python("-m", "kvferry", "demo"), 120),
        "tests": Part(pytest(*shlex.split(options.pytest), "tests/gpu"), 420, tests),
        "heterogeneous": Part(pytest(*shlex.split(options.pytest), *DEVICE_TESTS), 900, tests),
        "benchmark": Part(python("bench/gpu.py", *shlex.split(options.bench)), 420),
    }
    if go := shutil.which("go"):
        command = (go, "test", "./cuda", "-count=1", "-run", "AKernel(Makes|Copies)")
        found["kernels"] = Part(command, 240, {"KVFERRY_TEST_REAL_GPU": "1"})
    if sanitizer := shutil.which(SANITIZER) or shutil.which(SANITIZER, path=os.pathsep.join(SANITIZER_PLACES)):
        program = python("tests/gpu/moves.py")
        found["sanitizer"] = Part((sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *program), 240)
    return found


NAMES = ("demo", "tests", "heterogeneous", "kernels", "sanitizer", "benchmark")


def machine() -> Iterator[str]:
    """What the machine has, a line each."""
    yield system()
    yield f"{VARIABLE}={os.environ.get(VARIABLE, '')}"
    yield from first_lines([*SMI, "--format=csv,noheader"])
    if importlib.util.find_spec("torch"):
        yield from first_lines(python("-c", TORCH))
    else:
        yield "PyTorch: not installed; what needs it is skipped"


def driver(cuda: CUDA) -> Iterator[str]:
    """What the driver has, a line each."""
    yield f"CUDA's driver: {cuda.path}, {cuda.devices()} GPUs"
    for name in OPTIONAL:
        yield f"{name}: {'yes' if hasattr(cuda.library, name) else 'no'}"


def check(report: Report, options: argparse.Namespace) -> int:
    report.tell(machine())
    try:
        cuda = CUDA()
        report.tell(driver(cuda))
    except GpuError as e:
        report.say(f"There is no GPU: {e}")
        return 1
    if cuda.devices() == 0:
        report.say("There is no GPU: the driver has none")
        return 1
    found = parts(options, os.environ.get(VARIABLE) or FILE)
    chosen = options.only or NAMES
    results = [report.run(name, limited(found[name], options.limit)) for name in chosen if name in found]
    report.say("")
    for name in chosen:
        if name not in found:
            report.say(f"{name}: left out, {SANITIZER} is not installed")
    report.say_results()
    return 0 if all(results) else 1


def limited(part: Part, limit: float | None) -> Part:
    return part if limit is None else part._replace(limit=limit)


def benchmark() -> Mapping[str, object]:
    """What the benchmark has measured, for the report."""
    return {"benchmark": json.loads(BENCHMARK.read_text())} if BENCHMARK.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check kvferry with the GPUs of this machine.")
    option = parser.add_argument
    option("--only", action="append", choices=NAMES, help="a part to run; may be repeated")
    option("--limit", type=float, metavar="S", help="seconds that each part may take (each has its own)")
    option("--pytest", default="", metavar="OPTIONS", help="more options for the tests: --pytest='-x -k tcp'")
    option("--bench", default="", metavar="OPTIONS", help="options for the benchmark: --bench=--quick")
    option("--output", type=Path, default=BUILD, metavar="FOLDER", help="for the report (%(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    BENCHMARK.unlink(missing_ok=True)  # of an earlier run
    text, found = options.output / "gpu-report.txt", options.output / "gpu-report.json"
    with text.open("w", encoding="utf-8") as file:
        report = Report(file)
        result = check(report, options)
        report.write_json(found, **benchmark())
    print(f"The report is in {text} and {found}")
    return result


if __name__ == "__main__":
    sys.exit(main())
