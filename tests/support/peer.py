"""An engine in a process of its own, with a time limit on everything that is asked of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from .memory import Memory

TESTS = Path(__file__).parents[1]
LIMIT = 60.0  # seconds that any request may take unless it says otherwise
LOG_LIMIT = 30.0  # seconds within which a peer writes what it has logged
EXIT_LIMIT = 30.0  # seconds that a peer may take to end after its standard input did

started: list[Peer] = []
"""Every peer that still runs, or ended since the list was last cleaned, for the report of a failed test."""


class PeerError(AssertionError):
    """A peer answered a request with an exception, died, or took longer than the limit."""


class Pending:
    """A request that is under way."""

    def __init__(self, peer: Peer, what: str, future: concurrent.futures.Future[Any]) -> None:
        self._peer = peer
        self._what = what
        self._future = future

    @property
    def future(self) -> concurrent.futures.Future[Any]:
        """The answer, or PeerError."""
        return self._future

    def done(self) -> bool:
        return self._future.done()

    def result(self, limit: float = LIMIT) -> Any:
        """Wait for the answer. A peer that does not give it within `limit` seconds is killed."""
        try:
            return self._future.result(limit)
        except concurrent.futures.TimeoutError:
            self._peer.kill()
            raise PeerError(f"{self._peer}: {self._what} took more than {limit:g} s") from None


class Peer:
    """A worker process and, once `create` was called, its engine. Any thread may ask it for things.

    `python` is the interpreter, whose `mooncake.engine` decides what kind of peer this is; `env` is its whole
    environment. Standard error and output go to `log_path`. `module` is the program, and `enter` a command that runs it
    in place of itself.
    """

    def __init__(
        self,
        label: str,
        python: Union[str, Path],
        env: Mapping[str, str],
        log_path: Path,
        module: str = "support.worker",
        enter: Sequence[str] = (),
    ) -> None:
        self.label = label
        self.log_path = log_path
        self.name = ""  # what peers open, once created
        self._ids = itertools.count(1)
        self._regions = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[int, concurrent.futures.Future[Any]] = {}
        self._ended = False
        self._log_read = 0  # bytes of the log that are older than the current test
        self.process = self._start([*enter, str(python), "-m", module], dict(env))
        threading.Thread(target=self._read_answers, daemon=True).start()
        started.append(self)

    def __str__(self) -> str:
        return f"{self.label} (process {self.pid})"

    @property
    def pid(self) -> int:
        return self.process.pid

    def _start(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
        with open(self.log_path, "wb") as log:
            return subprocess.Popen(
                command, cwd=TESTS, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    # Requests.

    def start(self, op: str, **arguments: Any) -> Pending:
        """Send a request and return at once."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            if self._ended:
                raise PeerError(f"{self} has ended, exit code {self.process.poll()}")
            number = next(self._ids)
            self._pending[number] = future
            assert self.process.stdin is not None
            try:
                self.process.stdin.write(json.dumps({"id": number, "op": op, **arguments}) + "\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # the reader of answers notices the end, and fails what is pending
        return Pending(self, op if op != "call" else str(arguments["method"]), future)

    def ask(self, op: str, limit: float = LIMIT, **arguments: Any) -> Any:
        """Send a request and wait for its result."""
        return self.start(op, **arguments).result(limit)

    def call(self, method: str, *arguments: Any, limit: float = LIMIT, engine: str = "main", **named: Any) -> Any:
        """Call a method of the engine."""
        return self.ask("call", limit, engine=engine, method=method, arguments=arguments, named=named)

    def try_create(
        self,
        host: str = "127.0.0.1",
        metadata: str = "P2PHANDSHAKE",
        protocol: str = "tcp",
        engine: str = "main",
        limit: float = LIMIT,
    ) -> int:
        """Initialize an engine and return its code."""
        made = self.ask("create", limit, host=host, metadata=metadata, protocol=protocol, engine=engine)
        if made["code"] == 0:
            bare = host.count(":") > 1 and not host.startswith("[")
            self.name = f"[{host}]:{made['port']}" if bare else f"{host}:{made['port']}"
        return int(made["code"])

    def create(self, host: str = "127.0.0.1", protocol: str = "tcp") -> Peer:
        """Initialize the engine, which must succeed."""
        code = self.try_create(host, protocol=protocol)
        if code != 0:
            raise PeerError(f"{self}: initialize({host!r}) gave {code}")
        return self

    def memory(
        self,
        size: int,
        seed: Optional[int] = None,
        register: bool = True,
        place: str = "host",
        location: Optional[str] = None,
    ) -> Memory:
        """Make memory in the peer, fill it when there is a seed, and register it, with a location when there is one.

        See make_region for `place`.
        """
        region = f"region-{next(self._regions)}"
        memory = Memory(self, region, self.ask("region", region=region, size=size, place=place), size)
        if seed is not None:
            memory.fill(seed)
        if register:
            self.register(memory, location)
        return memory

    def register(self, memory: Memory, location: Optional[str] = None) -> None:
        """Register memory, which must succeed."""
        arguments = (memory.address, memory.size) if location is None else (memory.address, memory.size, location)
        code = self.call("register_memory", *arguments)
        assert code == 0, f"{self}: registering {memory.size} bytes with location {location} gave {code}"

    def start_move(
        self, target: str, opcode: str, blocks: Sequence[Sequence[int]], how: str = "batch", notify: Sequence[str] = ()
    ) -> Pending:
        """Start moving blocks of [local address, peer address, length]; see MOVES in worker.py for `how`."""
        return self.start(
            "move", engine="main", how=how, opcode=opcode, target=target, blocks=blocks, notify=list(notify)
        )

    def move(
        self,
        target: str,
        opcode: str,
        blocks: Sequence[Sequence[int]],
        how: str = "batch",
        notify: Sequence[str] = (),
        limit: float = LIMIT,
    ) -> dict[str, Any]:
        """Move blocks and return {"code": of the engine, "seconds": it took}."""
        result: dict[str, Any] = self.start_move(target, opcode, blocks, how, notify).result(limit)
        return result

    def log(self) -> str:
        """Return what the peer printed since the current test began."""
        return self.log_path.read_bytes()[self._log_read :].decode(errors="replace")

    def logs(self, *texts: str, limit: float = LOG_LIMIT) -> bool:
        """Tell whether the peer has printed one of the texts since the current test began, or does so soon: it writes
        log lines in the background."""
        return self.logs_match("|".join(map(re.escape, texts)), limit)

    def logs_match(self, pattern: str, limit: float = LOG_LIMIT) -> bool:
        """logs() of a text that matches a regular expression."""
        deadline = time.monotonic() + limit
        while not (found := re.search(pattern, self.log())) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found is not None

    def begin_test(self) -> None:
        self._log_read = self.log_path.stat().st_size

    # The end.

    def kill(self) -> None:
        """End the process as SIGKILL does, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(EXIT_LIMIT)

    def close(self) -> int:
        """Let the process end by itself and return its exit code; kill it when it does not within the limit."""
        with self._lock:
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            return self.process.wait(EXIT_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    @property
    def ended(self) -> bool:
        return self._ended

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            with self._lock:
                future = self._pending.pop(answer["id"])
            if "error" in answer:
                future.set_exception(PeerError(f"{self}: {answer['error']}"))
            else:
                future.set_result(answer["result"])
        with self._lock:
            self._ended = True
            orphans = list(self._pending.values())
            self._pending.clear()
        code = self.process.wait()
        for future in orphans:
            future.set_exception(PeerError(f"{self} died, exit code {code}"))


def begin_test() -> None:
    """Forget the peers that ended, and what the others logged so far: a later failure has nothing to do with it."""
    started[:] = [peer for peer in started if not peer.ended]
    for peer in started:
        peer.begin_test()


def environment(settings: Mapping[str, str], ours: bool) -> dict[str, str]:
    """Return this process's environment without the settings of any engine, plus `settings`.

    What points Python to our package and its library is kept for our peers only.
    """
    hidden = ("MC_",) if ours else ("MC_", "KVFERRY_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    kept.update(settings)
    return kept
