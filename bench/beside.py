"""How much of its rate a matrix product keeps while its process moves memory of the GPU: `python bench/beside.py`.

The process has an engine and multiplies matrices of bf16 with PyTorch. A second process has the other end, in memory of
the host. In rounds, the product runs alone and beside transfers of one case after the other; the device's events tell
its time. A figure is the median of the rounds. The exit status is 1 when a product keeps less than --least of its rate.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for how the package is found

from comparison.adapters import KINDS, Blocks, Move
from comparison.case import KIB, MIB, Case
from comparison.pairs import LOOPBACK, End
from comparison.running import NO_SHORTCUT
from support import venvs
from tables import table

CASES = [Case(way, *size) for size in ((4 * KIB, 256), (64 * KIB, 64), (MIB, 32)) for way in ("write", "read")]
SPAN = max(case.span for case in CASES)


class Product:
    """A product of square matrices, repeated."""

    def __init__(self, torch: Any, side: int, times: int) -> None:
        self._torch, self._side, self._times = torch, side, times
        self._factors = [torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        self._result = torch.empty_like(self._factors[0])
        self.rate()

    def rate(self) -> float:
        """Floating-point operations in a second, in units of 10^12."""
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(self._times):
            self._torch.mm(*self._factors, out=self._result)
        end.record()
        end.synchronize()
        return float(2 * self._side**3 * self._times / begin.elapsed_time(end) / 1e9)


class Transfers:
    """A thread that moves the blocks of a case again and again."""

    def __init__(self, move: Move, case: Case) -> None:
        self._move, self._case = move, case
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0

    def _run(self) -> None:
        while not self._over.is_set():
            if not self._move():
                raise RuntimeError(f"{self._case} failed")
            self.calls += 1

    def beside(self, measure: Callable[[], float]) -> float:
        """What is measured while they run."""
        self._thread.start()
        try:
            return measure()
        finally:
            self._over.set()
            self._thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a matrix product beside transfers.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (%(default)s)")
    parser.add_argument("--side", type=int, default=8192, metavar="N", help="of a matrix (%(default)s)")
    parser.add_argument("--times", type=int, default=100, metavar="N", help="products in a round (%(default)s)")
    parser.add_argument("--least", type=float, default=0.97, metavar="R", help="part of its rate to keep (%(default)s)")
    parser.add_argument("--output", type=Path, default="build/bench", metavar="FOLDER", help="for a log (%(default)s)")
    options = parser.parse_args()
    try:
        torch = importlib.import_module("torch")
        settings = {**venvs.ours(), **NO_SHORTCUT}
    except (ModuleNotFoundError, venvs.Unavailable) as e:
        print(f"the benchmark cannot run: {e}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ.update(settings)
    log = options.output / "beside.log"
    target = End(sys.executable, "ours", "target", LOOPBACK, settings, log, "host", SPAN, SPAN)
    try:
        kept = measure(torch, target, options)
    finally:
        target.close()
    return 0 if min(kept) >= options.least else 1


def measure(torch: Any, target: End, options: argparse.Namespace) -> list[float]:
    """Print a table, and return the part of its rate that the product keeps in each case."""
    name, remote = target.begun()
    engine = KINDS["ours"](LOOPBACK.initiator, "cuda:0")
    memory = torch.zeros(SPAN, dtype=torch.uint8, device="cuda")
    engine.register(memory.data_ptr(), SPAN)
    peer = engine.connect(name)
    product = Product(torch, options.side, options.times)
    rows, kept = [], []
    for case in CASES:
        local = [memory.data_ptr() + offset for offset in case.offsets("initiator", 0)]
        far = [remote + offset for offset in case.offsets("target", 0)]
        move = engine.move(case.operation, Blocks(peer, local, far, [case.block] * case.blocks))
        rates = []
        for _ in range(options.rounds):
            alone, transfers = product.rate(), Transfers(move, case)
            beside = transfers.beside(product.rate)
            seconds = 2 * options.side**3 * options.times / beside / 1e12
            rates.append((beside / alone, alone, transfers.calls * case.block * case.blocks / seconds / 1e9))
        part, alone, moved = (statistics.median(column) for column in zip(*rates))
        kept.append(part)
        rows.append([str(case), f"{alone:.0f}", f"{part:.3f}", f"{moved:.1f}"])
    print(table(["beside", "alone, TFLOP/s", "keeps", "moved, GB/s"], rows))
    return kept


if __name__ == "__main__":
    sys.exit(main())
