"""The engines behind one interface, in the process that uses them.

Moves are prepared once and called again and again. Mooncake's interface takes its lists of blocks at each call, and so
does ours; NIXL's keeps a prepared list, which is how it is meant to be used.
"""

from __future__ import annotations

import array
import base64
import contextlib
import importlib
import os
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Union

from comparison.case import Case

Addresses = Union[Sequence[int], Any]  # a list, or an array of uint64
Move = Callable[[], bool]  # moves all of its blocks, and tells whether that succeeded


class Blocks(NamedTuple):
    """Blocks of one size, by their addresses, from or to one peer."""

    peer: str
    local: Addresses
    remote: Addresses
    sizes: Addresses

    def packed(self, kind: str) -> Blocks:
        """The same as lists, or as arrays of NumPy, or of Python."""
        if kind == "list":
            return self
        make = importlib.import_module("numpy").asarray if kind == "numpy" else _python_array
        return Blocks(self.peer, *(make(values, "uint64") for values in self[1:]))


def _python_array(values: Sequence[int], _: str) -> array.array[int]:
    return array.array("Q", values)


class Mooncake:
    """Whatever the interpreter finds as mooncake.engine: ours, or Mooncake's own."""

    spins = False  # who is moved to or from need not do anything for it

    def __init__(self, host: str, place: str) -> None:
        engine = importlib.import_module("mooncake.engine")
        self._engine, self._host = engine.TransferEngine(), host
        if self._engine.initialize(host, "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("the engine cannot be initialized")

    def register(self, address: int, size: int) -> None:
        if self._engine.register_memory(address, size) != 0:
            raise RuntimeError(f"{size} bytes cannot be registered")

    def name(self) -> str:
        return f"{self._host}:{self._engine.get_rpc_port()}"

    def connect(self, name: str) -> str:
        """What a peer of that name is called by its user."""
        return name

    def move(self, operation: str, blocks: Blocks) -> Move:
        if len(blocks.local) == 1:
            one = getattr(self._engine, f"transfer_sync_{operation}")
            arguments = (blocks.peer, blocks.local[0], blocks.remote[0], blocks.sizes[0])
            return lambda: one(*arguments) == 0
        return self.batch(operation, blocks)

    def batch(self, operation: str, blocks: Blocks) -> Move:
        """The same by the call for many blocks, also for a single one."""
        many = getattr(self._engine, f"batch_transfer_sync_{operation}")
        return lambda: many(*blocks) == 0

    def spread(self, operation: str, parts: Sequence[Blocks]) -> Move:
        """Blocks of several peers, all under way at once."""
        start = getattr(self._engine, f"batch_transfer_async_{operation}")
        wait = self._engine.get_batch_transfer_status

        def move() -> bool:
            batches = [start(*blocks) for blocks in parts]
            return 0 not in batches and wait(batches) == 0

        return move

    def progress(self) -> None:
        """Nothing: the engine has threads for that."""


class Ours(Mooncake):
    """kvferry as mooncake.engine, and what it has besides."""

    def planned(self, operation: str, peer: str, plan: Any) -> Move:
        """A change of layout as one transfer."""
        start = getattr(plan, operation)
        return lambda: start(self._engine, peer) is None

    def post(self, operation: str, peer: str, plan: Any, times: int) -> list[float]:
        """The seconds of so many calls that start a change of layout. Each transfer ends before the next one begins."""
        found = []
        with importlib.import_module("kvferry").Engine(self._host) as engine:
            start = getattr(engine.open(peer), operation)
            for _ in range(times):
                before = time.perf_counter()
                transfer = start(plan)
                found.append(time.perf_counter() - before)
                transfer.result()
        return found


def change_plan(case: Case, local: int, remote: int) -> Any:
    """kvferry.plan of a change of layout, for the initiator, by the addresses of the caches. Heads that the source does
    not have stay as they are."""
    kvferry = importlib.import_module("kvferry")
    change = case.caches
    source, destination = (local, remote) if case.operation == "write" else (remote, local)
    sides = []
    for cache, address in ((change.source, source), (change.destination, destination)):
        layout = kvferry.Layout.from_json(cache.layout(address, change.tokens, change.model))
        sides.append(layout.blocks(cache.table(change.tokens)))
    return kvferry.plan(*sides, change.tokens, partial=True)


class Nixl:
    """NIXL over UCX. Nothing moves without a call at either end, so both ends call all the time."""

    spins = True

    def __init__(self, host: str, place: str) -> None:
        api = module_of("nixl")
        self._kind, self._device = ("DRAM", 0) if place == "host" else ("VRAM", int(place.removeprefix("cuda:")))
        config = api.nixl_agent_config(enable_prog_thread=False, enable_listen_thread=False, backends=["UCX"])
        self._agent = api.nixl_agent(f"{host} {os.getpid()} {id(self)}", config)
        self._registered: list[Any] = []

    def register(self, address: int, size: int) -> None:
        self._registered.append(self._agent.register_memory([(address, size, self._device, "")], self._kind))

    def name(self) -> str:
        return base64.b64encode(self._agent.get_agent_metadata()).decode()

    def connect(self, name: str) -> str:
        peer = self._agent.add_remote_agent(base64.b64decode(name))
        text: str = peer.decode() if isinstance(peer, bytes) else peer
        self._agent.make_connection(text)
        return text

    def move(self, operation: str, blocks: Blocks) -> Move:
        return self.spread(operation, [blocks])

    def spread(self, operation: str, parts: Sequence[Blocks]) -> Move:
        handles = [self._handle(operation, blocks) for blocks in parts]
        post, state = self._agent.transfer, self._agent.check_xfer_state

        def move() -> bool:
            states = [post(handle) for handle in handles]
            while "PROC" in states:
                states = [state(handle) if was == "PROC" else was for handle, was in zip(handles, states)]
            return all(state == "DONE" for state in states)

        return move

    def _handle(self, operation: str, blocks: Blocks) -> Any:
        lists = [
            self._agent.get_xfer_descs([(a, n, self._device) for a, n in zip(side, blocks.sizes)], self._kind)
            for side in (blocks.local, blocks.remote)
        ]
        return self._agent.initialize_xfer(operation.upper(), *lists, blocks.peer)

    def progress(self) -> None:
        for _ in range(200):
            self._agent.get_new_notifs()


Adapter = Union[Mooncake, Nixl]
KINDS: dict[str, Callable[[str, str], Adapter]] = {"ours": Ours, "mooncake": Mooncake, "nixl": Nixl}
MODULES = {"ours": ("mooncake.engine",), "mooncake": ("mooncake.engine",), "nixl": ("nixl_cu12._api", "nixl_cu13._api")}


def module_of(kind: str) -> Any:
    """An engine's module: NIXL's is of its package for either release of CUDA."""
    *others, last = MODULES[kind]
    for module in others:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(module)
    return importlib.import_module(last)


def load(kind: str) -> None:
    """Import an engine's module, and have its native library in memory, which ours opens only when it is used."""
    module_of(kind)
    if kind == "ours":
        importlib.import_module("kvferry._library").load()
