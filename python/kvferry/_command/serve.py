"""kvferry serve: memory for `kvferry bench` on another machine, and for the benchmarks of Mooncake."""

from __future__ import annotations

import argparse
import random
import re
import signal
import time

from kvferry._command import serving, status
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.engines import ENGINE, P2P, engine, own_name
from kvferry._command.output import Output
from kvferry._command.pattern import Pattern
from kvferry._device import DeviceError
from kvferry._engine import Engine
from kvferry._options import positive, takes
from kvferry._places import Placed, PlaceError, allocate, place, size_text

ENDING = {signal.SIGTERM, signal.SIGINT}


class Server:
    """Registered memory with a notice: see serving.py."""

    def __init__(self, memory: Placed, place: str, parts: int, out: Output) -> None:
        self._memory = memory
        self._out = out
        size = memory.size - serving.PAGE
        self.notice = serving.Notice(size, random.SystemRandom().getrandbits(32), place, (None,) * parts)
        self._pattern = Pattern(self.notice.seed)
        self._heard: dict[str, float] = {}  # when each bench has said something, by time.monotonic()
        self._publish()

    def serve(self, engine: Engine) -> None:
        """Answer benches until a signal of ENDING comes; they are blocked."""
        while signal.sigtimedwait(ENDING, serving.LOOK) is None:
            self.answer(engine)

    def answer(self, engine: Engine) -> None:
        """Answer what benches have said until now."""
        for name, text in engine.notifies():
            request = serving.Request.decode(text) if name == serving.MESSAGE else None
            if request is not None:
                self._answer(request)
        self._expire()

    def _answer(self, request: serving.Request) -> None:
        owned = request.id in self.notice.parts
        if request.do == serving.END:
            self._give_back(request.id, "has ended")
        elif request.do == serving.BEGIN and not owned:
            self._give(request.id)
        elif owned:
            self._heard[request.id] = time.monotonic()

    def _give(self, bench: str) -> None:
        """Give a bench a part, if one is free."""
        if None not in self.notice.parts:
            self._out.detail(f"bench {bench} waits: all parts are in use")
            return
        number = self.notice.parts.index(None)
        size = self.notice.part_size
        self._pattern.fill(self._memory, number * size, size, number * size)  # peers may have overwritten it
        self._heard[bench] = time.monotonic()
        self._set(number, bench)
        self._out.note(f"bench {bench} begins")

    def _give_back(self, bench: str, why: str) -> None:
        if bench in self.notice.parts:
            self._heard.pop(bench, None)
            self._set(self.notice.parts.index(bench), None)
            self._out.note(f"bench {bench} {why}")

    def _expire(self) -> None:
        late = time.monotonic() - serving.LEASE
        for bench in [bench for bench, heard in self._heard.items() if heard < late]:
            self._give_back(bench, f"has said nothing for {serving.LEASE:g} s")

    def _set(self, number: int, bench: str | None) -> None:
        parts = list(self.notice.parts)
        parts[number] = bench
        self.notice = self.notice._replace(parts=tuple(parts))
        self._publish()

    def _publish(self) -> None:
        self._memory.write(self.notice.encode(), self._memory.size - serving.PAGE)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command: serve until a signal."""
    if arguments.size < (arguments.clients + 1) * serving.PAGE:
        raise CommandError(f"--size must be {(arguments.clients + 1) * serving.PAGE} at least")
    # Blocked signals wait for sigtimedwait(): one that comes early is not lost, and none interrupts the start or end.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        size = -(-arguments.size // serving.PAGE) * serving.PAGE + serving.PAGE
        memory = allocate(arguments.memory, size)
        server = Server(memory, arguments.memory, arguments.clients, out)
        arguments.name = arguments.name or own_name(arguments.metadata, None)
        with engine(arguments, memory=memory) as made:
            if made.register(memory.address, memory.size, memory.location) != 0:
                raise CommandError(f"the memory cannot be registered: {made.last_error()}")
            name, store = made.name(), ""
            if arguments.metadata != P2P:
                name, store = arguments.name, f" --metadata {shown(arguments.metadata)}"
            out.note(f"serving {size_text(server.notice.size)} of {arguments.memory} memory; on another machine:")
            out.text(f"kvferry bench {name}{store}")
            out.result(
                {"name": name, "size": server.notice.size, "memory": arguments.memory, "parts": arguments.clients}
            )
            server.serve(made)
    except (PlaceError, DeviceError) as e:
        raise CommandError(str(e)) from e
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return status.OK


def shown(store: str) -> str:
    """A store as a line that others may read shows it. Its user, password and query are for the reader to add."""
    return "STORE" if re.search("[@?]", store) else store


@takes(f"a whole number from 1 to {serving.MOST_PARTS}")
def parts(text: str) -> int:
    """A number of parts. ValueError for one that a notice has no room for."""
    number = int(text)
    if not 1 <= number <= serving.MOST_PARTS:
        raise ValueError(text)
    return number


COMMAND = Command(
    name="serve",
    help="offer memory to kvferry bench on another machine",
    description="Offer memory of this machine to kvferry bench, or to the benchmarks of Mooncake, and print the command"
    " to run on the other machine. Peers may read and overwrite this memory, and no other. Ctrl-C or SIGTERM ends it.",
    run=run,
    options=(
        option("--memory", type=place, default="host", metavar="PLACE", help="host, npu:N or cuda:N (%(default)s)"),
        option("--size", type=positive, default="256M", metavar="BYTES", help="how much memory (%(default)s)"),
        option(
            "--clients",
            type=parts,
            default=1,
            metavar="N",
            help="how many benches may run at a time; each gets a part of the memory (%(default)s)",
        ),
        *ENGINE,
    ),
    examples=(
        Example("kvferry serve", "offer host memory"),
        Example("kvferry serve --memory npu:0 --size 1G", "offer memory of the first NPU"),
    ),
)
