"""Processes that are forked from one that has imported what they all need, where an import takes half a minute.

    python -m real.forks MODULE DESCRIPTOR    # what Nursery runs

The parent imports MODULE, and then forks a child for each message on the socket DESCRIPTOR. The child calls
MODULE.main. Each child leads a process group. When the socket's other end closes, the parent kills every group, and
ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Optional, Union

from support.peer import Peer

TESTS = Path(__file__).parents[1]
MESSAGE_LIMIT = 1 << 17  # bytes
END_LIMIT = 30.0  # seconds
FILES = 4  # that each message brings: standard input, output and error, and a pipe for how the child ends


class Child:
    """A forked process, as subprocess.Popen has one."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str], status: int) -> None:
        self.pid = pid
        self.stdin: Optional[IO[str]] = stdin
        self.stdout: Optional[IO[str]] = stdout
        self.returncode: Optional[int] = None
        self._ended = threading.Event()
        threading.Thread(target=self._watch, args=(status,), daemon=True).start()

    def _watch(self, status: int) -> None:
        said = os.read(status, 16)
        os.close(status)
        self.returncode = (
            int(said) if said else -signal.SIGKILL
        )  # nothing: the parent has ended, and so have its children
        self._ended.set()

    def poll(self) -> Optional[int]:
        return self.returncode

    def wait(self, timeout: Optional[float] = None) -> int:
        """Wait until the process has ended, and return its code as subprocess has it. Any thread may."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process and to those that it has started."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Nursery:
    """The parent. Close it, and every child ends."""

    def __init__(self, python: Union[str, Path], module: str, env: Mapping[str, str], log: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(log, "wb") as output:
            self._process = subprocess.Popen(
                [str(python), "-m", "real.forks", module, str(theirs.fileno())],
                cwd=TESTS,
                env=dict(env),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._log = log

    def fork(self, env: Mapping[str, str], arguments: Sequence[str], log: Path) -> Child:
        """Fork a child with this environment, PYTHONPATH and sys.argv. Its errors go to the log."""
        stdin, stdout, status = os.pipe(), os.pipe(), os.pipe()
        message = json.dumps({"env": dict(env), "arguments": list(arguments)}).encode()
        with open(log, "wb") as errors:
            theirs = [stdin[0], stdout[1], errors.fileno(), status[1]]
            try:
                socket.send_fds(self._socket, [message], theirs)
                said = self._socket.recv(MESSAGE_LIMIT)
            except ConnectionError:
                said = b""
            finally:
                for descriptor in (*theirs[:2], status[1]):
                    os.close(descriptor)
        if not said:
            raise RuntimeError(f"the process to fork from has ended:\n{self._log.read_text(errors='replace')[-4000:]}")
        return Child(int(said), os.fdopen(stdin[1], "w"), os.fdopen(stdout[0]), status[0])

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:  # it may still import
            self._process.kill()
            self._process.wait()


class ForkedPeer(Peer):
    """A peer that was forked from a process that has imported its program."""

    def __init__(self, nursery: Nursery, label: str, env: dict[str, str], log: Path) -> None:
        self._nursery = nursery
        super().__init__(label, "", env, log)

    def _start(self, command: Sequence[str], env: dict[str, str]) -> Any:
        return self._nursery.fork(env, [], self.log_path)


class Parent:
    """The other side of Nursery."""

    def __init__(self, module: str, commands: socket.socket) -> None:
        self._main = importlib.import_module(module).main
        self._commands = commands
        self._selector = selectors.DefaultSelector()
        self._selector.register(commands, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, int]] = {}  # by the descriptor of the process: its number, and the pipe

    def run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is not self._commands:
                        self._bury(key.fd)
                    elif not self._serve():
                        return
        finally:
            for pid, _ in self._children.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _serve(self) -> bool:
        """Fork a child, or tell that there is nobody any more who asks for one."""
        said, files, _, _ = socket.recv_fds(self._commands, MESSAGE_LIMIT, FILES)
        if not said:
            return False
        message = json.loads(said)
        pid = os.fork()
        if pid == 0:
            self._be_born(message, files)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # as the child does: whoever comes first
        for descriptor in files[:3]:
            os.close(descriptor)
        watched = os.pidfd_open(pid)
        self._children[watched] = (pid, files[3])
        self._selector.register(watched, selectors.EVENT_READ)
        self._commands.send(str(pid).encode())
        return True

    def _be_born(self, message: dict[str, Any], files: list[int]) -> None:
        """Be the child, and never return."""
        code = 1
        try:
            os.setpgid(0, 0)
            self._selector.close()
            self._commands.close()
            for watched, (_, status) in self._children.items():
                os.close(watched)
                os.close(status)
            for number, descriptor in enumerate(files[:3]):
                os.dup2(descriptor, number)
            for descriptor in files:
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(message["env"])
            sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            sys.argv[1:] = message["arguments"]
            self._main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _bury(self, watched: int) -> None:
        self._selector.unregister(watched)
        os.close(watched)
        pid, status = self._children.pop(watched)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it had started and left behind
        with contextlib.suppress(BrokenPipeError):
            os.write(status, str(code).encode())
        os.close(status)


if __name__ == "__main__":
    Parent(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))).run()
