"""What the programs of `inprocess.run_python` use: they begin with everything that is here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, Callable, Union

from kvferry import Layout, Place, plan
from kvferry._memory import Mapping

from .process import stop

__all__ = [
    "Mapping",
    "StuckPeer",
    "blocks",
    "child",
    "interrupt_soon",
    "name",
    "os",
    "plan",
    "signal",
    "start",
    "sys",
    "threading",
    "time",
    "works",
]

MIB = 1 << 20


def start() -> Any:
    """An engine that was initialized."""
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return engine


def name(engine: Any) -> str:
    return f"127.0.0.1:{engine.get_rpc_port()}"


class Tokens:
    """Memory at an address as an array of two blocks of 16 tokens, of 1 MiB each."""

    def __init__(self, address: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (2, 16, MIB), "typestr": "|u1"}


def blocks(memory: Any, *numbers: int) -> Place:
    """Blocks of Tokens in memory with an address."""
    return Layout(Tokens(memory.address), "block token dim").blocks(numbers)


def works() -> None:
    """Two new engines of this process move bytes between them."""
    a, b = start(), start()
    memory = Mapping(1 << 16)
    assert b.register_memory(memory.address, memory.length) == 0
    source = bytes(range(256))
    assert a.write_bytes_to_buffer(memory.address, source, 256) == 0
    assert a.transfer_sync_write(name(b), memory.address, memory.address + 4096, 256) == 0
    assert b.read_bytes_from_buffer(memory.address + 4096, 256) == source


def child(f: Callable[[], None], limit: float = 60) -> Union[int, str]:
    """Run f in a forked child and return its exit status; one that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            f()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


class StuckPeer:
    """A process whose engine has 64 MiB of memory, and which can be stopped: then nothing moves and nobody says so."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from support.programs import *; from support import programs; programs.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        port, address = self.process.stdout.readline().split()
        self.name = f"127.0.0.1:{port}"
        self.address = int(address)
        self.length = 64 * MIB

    def stop(self) -> None:
        stop(self.process.pid)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()


def serve() -> None:
    """The program of StuckPeer; ends when its standard input does."""
    engine = start()
    memory = Mapping(64 * MIB)
    assert engine.register_memory(memory.address, memory.length) == 0
    print(engine.get_rpc_port(), memory.address, flush=True)
    sys.stdin.read()


def interrupt_soon() -> list[float]:
    """Send this process SIGINT in half a second; the list will hold the time."""
    sent: list[float] = []

    def interrupt() -> None:
        time.sleep(0.5)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    return sent
