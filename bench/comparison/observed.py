"""What metrics and traces cost: the same transfers with metrics, with traces, with both, and with none of them, in the
same rounds."""

from __future__ import annotations

import contextlib
import functools
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from comparison.case import KIB, MIB, Case
from comparison.pairs import LOOPBACK, Mover, Setup
from comparison.results import DIRECT, OURS
from comparison.running import SETUPS, Make, Plan, Run, in_rounds, opened, pair, progress

WHERE = "loopback, observed"
CASES = [
    Case(operation, block, blocks)
    for block, blocks in ((4 * KIB, 1), (4 * KIB, 64), (64 * KIB, 64), (MIB, 32))
    for operation in ("write", "read")
]
OFF = {"KVFERRY_SOCKET_DIR": "off"}
ENGINES = (DIRECT, OURS)
SCRAPE = 1.0  # seconds between two scrapes of a process


METRICS, TRACES, BOTH = "metrics", "traces", "metrics and traces"


def on(name: str, what: str) -> str:
    """What results call an engine with METRICS, TRACES or BOTH on."""
    return f"{name}, {what}"


def settings(folder: str) -> dict[str, dict[str, str]]:
    """The settings by what they turn on, with sockets and files in a folder."""
    metrics = {
        "KVFERRY_METRICS_LISTEN": f"unix:{folder}/%p.sock",
        "KVFERRY_SOCKET_DIR": f"{folder}/sockets",
        "MC_TE_METRIC": "1",
    }
    traces = {"KVFERRY_TRACE_FILE": f"{folder}/%p.json"}
    return {METRICS: metrics, TRACES: {**OFF, **traces}, BOTH: {**metrics, **traces}}


def observed(run: Run) -> None:
    progress("  metrics and traces, each on and off")
    with tempfile.TemporaryDirectory() as folder:
        setups: list[Setup] = []
        for name in ENGINES:
            setup = SETUPS[name]
            setups.append(setup._replace(settings={**setup.settings, **OFF}))
            for what, turned in settings(folder).items():
                setups.append(setup._replace(name=on(name, what), settings={**setup.settings, **turned}))
        size = max(case.span for case in CASES)
        making: dict[str, Make[Mover]] = {
            setup.name: functools.partial(pair, run, setup, LOOPBACK, size) for setup in setups
        }
        plan: Plan = {case: tuple(making) for case in CASES}
        with opened(run, making) as movers, scraped(Path(folder)):
            in_rounds(run, WHERE, plan, movers)


@contextlib.contextmanager
def scraped(folder: Path) -> Iterator[None]:
    """Ask each process for its metrics again and again, as Prometheus does, until the end of the block."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(SCRAPE):
            for path in folder.glob("*.sock"):
                with contextlib.suppress(OSError):
                    scrape(path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def scrape(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(SCRAPE)  # a process may be stopped
        asking.connect(str(path))
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while asking.recv(1 << 16):
            pass
