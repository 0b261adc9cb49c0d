"""A process with an engine and an arena, driven by lines of JSON as support/worker.py is; Python 3.9 and no packages.

A transfer goes this way:

1. The checker has filled the buffer's body with what is to be sent, or with what a READ is to replace, and its shadow
   with what the body is to be covered with. An area on a device is loaded from the body in the arena.
2. The engine's call runs until it returns, gives up, or is discarded.
3. At once the buffer is saved to its result, for a READ, and covered by its shadow: it is the caller's again. When
   unregister_memory or close returned earlier, that is what covered it, since the buffer was the caller's from then on.
4. The answer tells the code and how long the call took.

Offered memory is covered likewise as soon as unregister_memory or close has returned.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from typing import Any, Callable, NamedTuple, Optional

from support import regions
from support.worker import Server, batch_method, become, columns

from . import arena

HOST = "host"
NOBODY = 65534  # a user
REFUSED = -1
NOT_IN_USE = -9998
STEP = 0.002  # seconds between two looks at a batch
RETRY = 0.05  # seconds between two attempts to make an engine

pipes: list[int] = []
"""The descriptors that lead to the checker: a forked child must not keep them, or the checker misses this one's end."""


class Area:
    """Memory that the engine uses, with its three places in the arena."""

    def __init__(self, index: int, place: str) -> None:
        self._image = arena.BASE + arena.body(index)
        self._shadow = arena.BASE + arena.shadow(index)
        self._result = arena.BASE + arena.result(index)
        self._device: Optional[regions.Region] = None if place == HOST else regions.make_region(arena.SIZE, place)
        self.address = self._device.address if self._device else self._image
        self._submitted = ctypes.c_double.from_address(arena.BASE + arena.submitted(index))

    def submitted(self) -> None:
        """The engine has the whole of a call that uses the memory."""
        self._submitted.value = time.monotonic()

    def load(self, length: int = arena.SIZE) -> None:
        """Copy the body in the arena to the device."""
        if self._device:
            self._device.write(0, ctypes.string_at(self._image, length))

    def save(self, length: int = arena.SIZE) -> None:
        """Copy what the memory holds to the result."""
        if self._device:
            ctypes.memmove(self._result, self._device.read(0, length), length)
        else:
            ctypes.memmove(self._result, self._image, length)

    def cover(self, length: int = arena.SIZE) -> None:
        """Overwrite the memory by the shadow."""
        if self._device:
            self._device.write(0, ctypes.string_at(self._shadow, length))
        else:
            ctypes.memmove(self._image, self._shadow, length)


class Use:
    """A buffer while a call uses it: it is the caller's again once, by whatever comes first."""

    def __init__(self, area: Area, length: int, reads: bool) -> None:
        self._area, self._length, self._reads = area, length, reads
        self.submitted = threading.Event()  # the engine has the whole call, or it is over
        self.is_over = False
        self._lock = threading.Lock()

    def submit(self) -> None:
        """The engine has the whole of the call."""
        self._area.submitted()
        self.submitted.set()

    def end(self) -> None:
        self.submitted.set()
        with self._lock:
            if self.is_over:
                return
            self.is_over = True
            if self._reads:
                self._area.save(self._length)
            self._area.cover(self._length)


class Worker:
    """The operations. Each public method is one, its parameters the request's arguments."""

    def __init__(self) -> None:
        self._areas: list[Area] = []
        self._uses: dict[int, Use] = {}
        self._engine: Any = None

    # Life cycle

    def setup(self, path: str, places: list[str], private: bool) -> list[int]:
        """Map the arena, make an area at each place, and return the areas' addresses. Where it is `private`, other
        processes may not read this one's memory."""
        arena.map_at_base(path)
        self._areas = [Area(index, place) for index, place in enumerate(places)]
        for area in self._areas:
            area.load()
        if private:
            become(NOBODY, dumpable=False)
        return [area.address for area in self._areas]

    def load(self, areas: list[int]) -> None:
        """Copy bodies in the arena to devices."""
        for area in areas:
            self._areas[area].load()

    def open(self, host: str, registered: list[int], patience: float) -> int:
        """Make an engine, register areas with it, and return its port. Its ports may be taken for so many seconds."""
        from mooncake.engine import TransferEngine

        engine, deadline = TransferEngine(), time.monotonic() + patience
        while (code := engine.initialize(host, "P2PHANDSHAKE", "tcp", "")) != 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"initialize({host!r}) gave {code}")
            time.sleep(RETRY)
        for area in registered:
            code = engine.register_memory(self._areas[area].address, arena.SIZE)
            if code != 0:
                raise RuntimeError(f"registering area {area} gave {code}")
        self._engine = engine
        return int(engine.get_rpc_port())

    def close(self) -> None:
        """End the engine. All memory is the owner's again, and covered."""
        engine, self._engine = self._engine, None
        engine.get_engine().close()
        for use in list(self._uses.values()):
            use.end()
        for area in self._areas[: arena.REGIONS]:
            area.cover()
        del engine
        gc.collect()

    def fork(self, seconds: float) -> None:
        """Fork a child that does nothing for so long, and has every descriptor but those that lead to the checker."""
        child = os.fork()
        if child == 0:
            for pipe in pipes:
                os.close(pipe)
            time.sleep(seconds)
            os._exit(0)
        threading.Thread(target=os.waitpid, args=(child, 0), daemon=True).start()

    # Memory

    def register(self, area: int) -> int:
        engine = self._engine  # None while it is made anew
        return int(engine.register_memory(self._areas[area].address, arena.SIZE)) if engine else REFUSED

    def unregister(self, area: int) -> int:
        """Take a region back. Once the engine says that it is, it is covered."""
        engine = self._engine
        code = int(engine.unregister_memory(self._areas[area].address)) if engine else REFUSED
        if code == 0:
            self._areas[area].cover()
        return code

    def retract(self, area: int, delay: float) -> int:
        """Unregister a buffer, so many seconds after a call that uses it was submitted. The engine ends that call, and
        the buffer is covered once the engine says that it is unregistered."""
        use, engine = self._uses.get(area), self._engine
        if use is None or engine is None:
            return NOT_IN_USE
        use.submitted.wait()
        time.sleep(delay)
        if use.is_over:
            return NOT_IN_USE
        code = int(engine.unregister_memory(self._areas[area].address))
        if code == 0:
            use.end()
        return code

    def look(self, area: int) -> None:
        """Save what an area holds."""
        self._areas[area].save()

    # Transfers

    def transfer(
        self, area: int, opcode: str, target: str, spans: list[list[int]], length: int, way: str, seconds: float
    ) -> dict[str, Any]:
        """Move blocks of [offset in the buffer, peer's address, length] in the way `way` names; see WAYS.

        `length` is how much of the buffer is used; `seconds` is when the ways that have no limit of their own give up.
        """
        buffer = self._areas[area]
        buffer.load(length)
        self._uses[area] = use = Use(buffer, length, opcode == "read")
        blocks = [[buffer.address + offset, address, size] for offset, address, size in spans]
        began, error = time.monotonic(), ""
        try:
            code = WAYS[way](Call(self._engine, opcode, target, blocks, seconds, use.submit))
        except Exception as e:  # as an engine that is closed meanwhile raises
            code, error = REFUSED, repr(e)
        use.end()
        del self._uses[area]
        return {"code": code, "seconds": time.monotonic() - began, "error": error}


class Call(NamedTuple):
    """A call of the engine's. `limit` is in seconds, for the ways that have none of their own; `submitted` is to be
    called when the engine has all of the call."""

    engine: Any
    opcode: str
    target: str
    blocks: list[list[int]]
    limit: float
    submitted: Callable[[], None]


def sync(call: Call) -> int:
    """The call that most programs use."""
    if len(call.blocks) == 1:
        return int(getattr(call.engine, f"transfer_sync_{call.opcode}")(call.target, *call.blocks[0]))
    return int(batch_method(call.engine, "sync", call.opcode)(call.target, *columns(call.blocks)))


def submit(call: Call) -> int:
    batch = int(batch_method(call.engine, "async", call.opcode)(call.target, *columns(call.blocks)))
    if batch:
        call.submitted()
    return batch


def wait(call: Call) -> int:
    """Submit, and wait for the batch."""
    batch = submit(call)
    return int(call.engine.get_batch_transfer_status([batch])) if batch else REFUSED


def discard(call: Call) -> int:
    """Submit, look at the batch until it has ended, but not for longer than the limit, and discard it."""
    inner, batch = call.engine.get_engine(), submit(call)
    if not batch:
        return REFUSED
    deadline = time.monotonic() + call.limit
    state = 0
    while state == 0 and time.monotonic() < deadline:
        time.sleep(min(STEP, call.limit))
        state = inner.batches.state(batch)
    inner.batches.free(batch)
    return 0 if state == 1 else state or REFUSED


def timed(call: Call) -> int:
    """A blocking transfer that gives up after the limit."""
    from kvferry._bindings import OPCODE_READ, OPCODE_WRITE
    from kvferry._ffi import u64_array

    inner = call.engine.get_engine()
    segment = inner.segment(call.target, call.limit)
    if segment < 0:
        return int(segment)
    local, remote, lengths = (u64_array(column, "blocks") for column in columns(call.blocks))
    number = {"read": OPCODE_READ, "write": OPCODE_WRITE}[call.opcode]
    arrays = (local.address, remote.address, lengths.address)
    return int(inner.transfer(number, segment, *arrays, len(call.blocks), None, call.limit))


WAYS: dict[str, Callable[[Call], int]] = {"sync": sync, "wait": wait, "discard": discard, "timed": timed}
MOONCAKES_WAYS = ("sync", "wait")
OWN_LIMIT = ("sync", "wait")
"""The ways in which a call ends by MC_TRANSFER_TIMEOUT."""
SUBMITTING = ("wait", "discard")
"""The ways that tell when the engine has all of the call."""


def main() -> None:
    # Native libraries print where they like: answers get a descriptor of their own, standard output joins the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pipes.extend((0, answers.fileno()))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    Server(Worker(), answers).serve(sys.stdin)


if __name__ == "__main__":
    main()
