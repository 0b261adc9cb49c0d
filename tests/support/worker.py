"""A process with engines and memory in it, driven by lines of JSON; needs Python 3.9 and no packages.

A request is {"id": n, "op": name, ...arguments}, its answer {"id": n, "result": value} or {"id": n, "error": text}.
Every request runs on a thread of its own, so one that blocks holds up no other. The process ends when its standard
input does. `mooncake.engine` is whatever this interpreter imports by that name: ours or Mooncake's.
"""

from __future__ import annotations

import array
import ctypes
import gc
import hashlib
import json
import os
import resource
import sys
import threading
import time
import traceback
from typing import Any, Callable, TextIO

from . import runtimes, tensors
from .absent import AbsentRegion
from .pattern import BLOCK, pattern
from .regions import Region, make_region


class Worker:
    """The operations. Each public method is one, its parameters the request's arguments."""

    def __init__(self) -> None:
        self._engines: dict[str, Any] = {}
        self._regions: dict[str, Region] = {}
        self._hoard: list[int] = []

    # Engines.

    def create(self, host: str, metadata: str, protocol: str, engine: str) -> dict[str, int]:
        """Make an engine and initialize it; a second call of the same name initializes the same engine again."""
        if engine not in self._engines:
            from mooncake.engine import TransferEngine

            self._engines[engine] = TransferEngine()
        code = self._engines[engine].initialize(host, metadata, protocol, "")
        return {"code": code, "port": self._engines[engine].get_rpc_port() if code == 0 else 0}

    def drop(self, engine: str) -> None:
        """Drop the last reference to an engine, which destroys it."""
        del self._engines[engine]
        gc.collect()

    def call(self, engine: str, method: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        """Call any method of the engine whose arguments and result JSON can hold."""
        return getattr(self._engines[engine], method)(*arguments, **named)

    def notifies(self, engine: str) -> list[tuple[str, str]]:
        """Drain the notifications the engine has received."""
        return [(n.name, n.msg) for n in self._engines[engine].get_notifies()]

    # Memory.

    def region(self, region: str, size: int, place: str) -> int:
        """Make memory and return its address. It is not registered."""
        self._regions[region] = made = make_region(size, place)
        return made.address

    def wait_for_touch(self, region: str) -> None:
        """Wait until something sleeps on a page of absent memory."""
        self._absent(region).wait_for_touch()

    def come(self, region: str) -> None:
        """Let the pages of absent memory come."""
        self._absent(region).come()

    def _absent(self, region: str) -> AbsentRegion:
        memory = self._regions[region]
        assert isinstance(memory, AbsentRegion)
        return memory

    def free_region(self, region: str) -> None:
        self._regions.pop(region).free()

    def expandable_segments(self) -> int:
        """Count the segments of PyTorch's allocator that can grow."""
        return sum(bool(segment["is_expandable"]) for segment in tensors.torch().cuda.memory_snapshot())

    def gpu_memory(self) -> int:
        """Bytes of the current GPU that are in use, by whatever process."""
        free, total = tensors.torch().cuda.mem_get_info()
        return int(total - free)

    def free_regions(self) -> None:
        """Free all memory, and let go of the devices that it was on. No engine may use it any more."""
        while self._regions:
            self._regions.popitem()[1].free()
        runtimes.close()

    def fill(self, region: str, seed: int) -> None:
        memory = self._regions[region]
        memory.write(0, pattern(seed, memory.size))

    def digest(self, region: str) -> str:
        memory = self._regions[region]
        return hashlib.sha256(memory.read(0, memory.size)).hexdigest()

    def blocks(self, region: str) -> list[str]:
        """Digest a region BLOCK by BLOCK, to say where it differs."""
        memory = self._regions[region]
        view = memoryview(memory.read(0, memory.size))
        return [hashlib.sha256(view[i : i + BLOCK]).hexdigest() for i in range(0, len(view), BLOCK)]

    def peek(self, region: str, offset: int, length: int) -> str:
        return self._regions[region].read(offset, length).hex()

    def poke(self, region: str, offset: int, data: str) -> None:
        self._regions[region].write(offset, bytes.fromhex(data))

    def simulate(self, kind: str, control: str, arguments: list[Any]) -> Any:
        """Use a control of the simulated devices of a kind; see runtimes.Simulator."""
        return getattr(runtimes.Simulator(kind), control)(*arguments)

    # Transfers.

    def move(
        self, engine: str, how: str, opcode: str, target: str, blocks: list[list[int]], notify: list[str]
    ) -> dict[str, Any]:
        """Move blocks of [local address, peer address, length] in the way `how` names; see MOVES."""
        return timed(lambda: MOVES[how](self._engines[engine], opcode, target, blocks, notify))

    def plan(self, engine: str, opcode: str, target: str, sides: list[tuple[str, list[int], int]], tokens: int) -> None:
        """Move tokens as a plan says. sides are the local one and the peer's: a layout's text, a table of blocks, and
        the position of the first token. Only engines of ours have this."""
        import kvferry

        here, there = [kvferry.Layout.from_json(text).blocks(table, first) for text, table, first in sides]
        if opcode == "write":
            kvferry.plan(here, there, tokens).write(self._engines[engine], target)
        else:
            kvferry.plan(there, here, tokens).read(self._engines[engine], target)

    def grid(
        self, engine: str, opcode: str, target: str, local: int, peer: int, length: int, count: int
    ) -> dict[str, Any]:
        """Move `count` blocks of `length` bytes, the peer's in reverse order, and measure the memory that took."""
        locals_ = [local + i * length for i in range(count)]
        peers = [peer + i * length for i in reversed(range(count))]
        lengths = [length] * count
        gc.collect()
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # sets the peak to what is resident now
        before = status_kib("VmHWM")
        result = timed(lambda: batch_method(self._engines[engine], "sync", opcode)(target, locals_, peers, lengths))
        result["kib"] = status_kib("VmHWM") - before
        return result

    def execute(self, engine: str, region: str, program: str, names: dict[str, Any]) -> Any:
        """Run a program that has the engine, the tensor of a region as `local`, and these names, and return what it
        leaves as `result`."""
        memory = self._regions[region]
        assert isinstance(memory, tensors.TensorRegion)
        scope = {"engine": self._engines[engine], "local": memory.tensor, **names}
        exec(program, scope)
        return scope.get("result")

    # The process.

    def limit_descriptors(self, spare: int) -> int:
        """Lower the limit on open descriptors so that `spare` more can be opened; return the limit it was."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The limit is on the number, not on the count: fill the gaps below the highest one in use.
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        held = [os.open(os.devnull, os.O_RDONLY)]
        while held[-1] < highest:
            held.append(os.open(os.devnull, os.O_RDONLY))
        self._hoard += held
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + spare, hard))
        return soft

    def restore_descriptors(self, soft: int) -> None:
        """Set the limit to what limit_descriptors returned."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while self._hoard:
            os.close(self._hoard.pop())

    def become(self, user: int, dumpable: bool) -> None:
        become(user, dumpable)

    def fork(self) -> None:
        """Make a child, without exec, that has every descriptor and lives as long as this process."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(writing)
            os.read(reading, 1)  # returns when the parent ends
            os._exit(0)
        os.close(reading)

    def collect(self) -> None:
        """Run Python's collector, so that what it holds back is not taken for a leak."""
        gc.collect()


def become(user: int, dumpable: bool) -> None:
    """Go on as another user, for good. Where it is dumpable, others of that user may look into the process."""
    from mooncake.engine import TransferEngine

    TransferEngine()  # loads all that the user may not be able to read
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    set_dumpable = 4  # PR_SET_DUMPABLE
    assert ctypes.CDLL(None).prctl(set_dumpable, int(dumpable), 0, 0, 0) == 0


def status_kib(key: str) -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key + ":"))


def timed(action: Callable[[], int]) -> dict[str, Any]:
    start = time.monotonic()
    code = action()
    return {"code": code, "seconds": time.monotonic() - start}


def opcode_of(name: str) -> Any:
    from mooncake.engine import TransferOpcode

    return {"read": TransferOpcode.Read, "write": TransferOpcode.Write}[name]


def batch_method(engine: Any, kind: str, opcode: str) -> Callable[..., int]:
    method: Callable[..., int] = getattr(engine, f"batch_transfer_{kind}_{opcode}")
    return method


def columns(blocks: list[list[int]]) -> tuple[list[int], list[int], list[int]]:
    return [b[0] for b in blocks], [b[1] for b in blocks], [b[2] for b in blocks]


def notification(notify: list[str]) -> list[Any]:
    from mooncake.engine import TransferNotify

    return [TransferNotify(*notify)] if notify else []


def first_failure(codes: Any) -> int:
    return next((code for code in codes if code != 0), 0)


def move_sync(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    method = getattr(engine, f"transfer_sync_{opcode}")
    return first_failure(method(target, *block) for block in blocks)


def move_sync_opcode(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    message = notification(notify)
    return first_failure(engine.transfer_sync(target, *block, opcode_of(opcode), *message) for block in blocks)


def move_batch(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    return batch_method(engine, "sync", opcode)(target, *columns(blocks))


def move_batch_opcode(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    message = notification(notify)
    code: int = engine.batch_transfer_sync(target, *columns(blocks), opcode_of(opcode), *message)
    return code


def move_async(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    """Three batches at once where there are blocks for them, waited for together."""
    parts = [part for part in (blocks[i::3] for i in range(3)) if part]
    ids = [batch_method(engine, "async", opcode)(target, *columns(part)) for part in parts]
    return wait(engine, ids)


def move_async_opcode(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    return wait(engine, [engine.batch_transfer_async(target, *columns(blocks), opcode_of(opcode))])


def move_submit(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    """Submit all, then poll each. The API has this for WRITE only."""
    ids = [engine.transfer_submit_write(target, *block) for block in blocks]
    if 0 in ids:
        return -1
    return first_failure(poll(engine, batch) for batch in ids)


def wait(engine: Any, ids: list[int]) -> int:
    if 0 in ids:
        return -1
    code: int = engine.get_batch_transfer_status(ids)
    return code


def poll(engine: Any, batch: int) -> int:
    """Ask until the transfer ends; 0 when it completed, else what the engine answered."""
    while True:
        code: int = engine.transfer_check_status(batch)
        if code != 0:
            return 0 if code == 1 else code
        time.sleep(0.0005)


def move_arrays(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    """One batch of arrays, and for the second half another one that is waited for."""
    half = len(blocks) // 2
    first, second = ([array.array("Q", column) for column in columns(part)] for part in (blocks[:half], blocks[half:]))
    code: int = getattr(engine, f"batch_transfer_sync_{opcode}_arrays")(target, *first)
    return code or wait(engine, [getattr(engine, f"batch_transfer_async_{opcode}_arrays")(target, *second)])


def move_pages(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    """Two pages of each block, and the byte that is left of an odd one."""
    rows = []
    for local, remote, length in blocks:
        half = length // 2
        if half:
            rows.append((local, half, remote, half, half))
        if length % 2:
            rows.append((local + 2 * half, 0, remote + 2 * half, 0, 1))
    numbers = array.array("q", (n for row in rows for n in row))
    fields = memoryview(numbers).cast("B").cast("q", (len(rows), 5))
    pages = array.array("Q", (0, 1))
    code: int = getattr(engine, f"batch_transfer_sync_{opcode}_pages")(target, pages, pages, fields)
    return code


def move_scatter(engine: Any, opcode: str, target: str, blocks: list[list[int]], notify: list[str]) -> int:
    """Each block in a region of its own, after one byte that stays."""
    local, remote, lengths = columns(blocks)
    capacities, offsets = [n + 1 for n in lengths], [[1]] * len(blocks)
    before = [a - 1 for a in local], capacities, [a - 1 for a in remote], capacities
    start = getattr(engine, f"submit_scatter_{opcode}")
    ticket = start(target, *before, offsets, offsets, [[n] for n in lengths])
    limit = 60_000  # milliseconds
    return int(ticket.drain(limit))


MOVES: dict[str, Callable[[Any, str, str, list[list[int]], list[str]], int]] = {
    "sync": move_sync,
    "sync_opcode": move_sync_opcode,
    "batch": move_batch,
    "batch_opcode": move_batch_opcode,
    "async": move_async,
    "async_opcode": move_async_opcode,
    "submit": move_submit,
    "arrays": move_arrays,
    "pages": move_pages,
    "scatter": move_scatter,
}


class Server:
    """Reads requests, runs each on its own thread, and writes the answers."""

    def __init__(self, worker: object, answers: TextIO) -> None:
        self._worker = worker
        self._answers = answers
        self._lock = threading.Lock()

    def serve(self, requests: TextIO) -> None:
        for line in requests:
            threading.Thread(target=self._run, args=(json.loads(line),), daemon=True).start()

    def _run(self, request: dict[str, Any]) -> None:
        number, op = request.pop("id"), request.pop("op")
        try:
            answer = {"id": number, "result": getattr(self._worker, op)(**request)}
        except BaseException:  # whatever it is, the test that asked must hear of it
            answer = {"id": number, "error": traceback.format_exc()}
        with self._lock:
            self._answers.write(json.dumps(answer) + "\n")
            self._answers.flush()


def main() -> None:
    # Native libraries print where they like: answers get a descriptor of their own, standard output joins the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Server(Worker(), answers).serve(sys.stdin)


if __name__ == "__main__":
    main()
