"""What goes wrong on purpose, one function for each kind of plan.FAULTS that has a victim."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Callable

from support.peer import PeerError

from . import links, plan
from .model import Promise, Violation
from .plan import Fault
from .slots import AT_ONCE, Process, Slot
from .transfers import Running

STREAMS = 2  # of faults of a world, at the same time
AFTER_FORK = 0.3  # seconds that a child outlives its parent at least
END_STEP = 0.05  # seconds between two looks at connections
ON_ITS_WAY = 0.2  # seconds in which calls come to wait for a process that is stopped
MOONCAKES_PORTS = {"MC_MIN_RPC_PORT": "15000", "MC_MAX_RPC_PORT": "17000"}


class Faults:
    """One fault after the other."""

    def __init__(self, running: Running, number: int) -> None:
        self._running = running
        self._steps = plan.faults(running.plan, number)

    async def run(self) -> None:
        for step in self._steps:
            await asyncio.sleep(step.pause)
            if self._running.over:
                return
            try:
                happened = await KINDS[step.kind](self._running, step)
                self._running.model.counts[f"fault {step.kind}"] += happened
            except PeerError:
                pass  # another fault ended the process
            except Violation as violation:
                self._running.violated(violation)


async def stop(running: Running, fault: Fault) -> bool:
    process = running.slots[fault.victim].process
    return await stopped(process, fault.seconds)


async def stopped(process: Process, seconds: float) -> bool:
    if process.is_stopped or process.is_over:
        return False
    process.stop()
    await asyncio.sleep(seconds)
    if not process.is_over:
        process.go_on()
    return True


async def kill(running: Running, fault: Fault) -> bool:
    slot = running.slots[fault.victim]
    async with slot.life:
        if fault.both and "fork" in running.plan.faults and not slot.process.is_stopped:
            await slot.fork(fault.seconds + AFTER_FORK)
        slot.kill()
        await asyncio.sleep(fault.seconds * 0.2)
        await slot.start()
    return True


async def restart(running: Running, fault: Fault) -> bool:
    slot = running.slots[fault.victim]
    if not slot.position.ours:
        return await kill(running, fault)
    async with slot.life, slot.memory:
        if fault.both and "fork" in running.plan.faults and not slot.process.is_stopped:
            await slot.fork(AT_ONCE + fault.seconds)  # longer than see_the_end waits
        engine = await slot.close_engine()
        await see_the_end(running, slot)
        await asyncio.sleep(fault.seconds * 0.2)
        for region in engine.regions:
            await slot.check(slot.process, region)
        await slot.reopen()
    return True


async def see_the_end(running: Running, slot: Slot) -> None:
    """Find connections to an engine that was closed which are up, as where a forked child has them, too."""
    first, last = ports(slot)
    if not links.is_apart() or any(ports(other) == (first, last) for other in running.slots if other is not slot):
        return
    deadline = time.monotonic() + AT_ONCE
    while left := links.connections(slot.process.peer.pid, first, last):
        if time.monotonic() > deadline:
            raise Violation(Promise.BOUNDED, "peers do not see the end of an engine that was closed", left)
        await asyncio.sleep(END_STEP)


def ports(slot: Slot) -> tuple[int, int]:
    settings = slot.position.settings if slot.position.ours else MOONCAKES_PORTS
    return int(settings["MC_MIN_RPC_PORT"]), int(settings["MC_MAX_RPC_PORT"])


async def fork(running: Running, fault: Fault) -> bool:
    slot = running.slots[fault.victim]
    if slot.process.is_stopped or slot.process.is_over:
        return False
    await slot.fork(fault.seconds)
    return True


async def reset(running: Running, fault: Fault) -> bool:
    """Both directions of the victim's connections with others, or those that others made to it."""
    slot = running.slots[fault.victim]
    if slot.process.is_over:
        return False
    links.reset_connections(slot.process.peer.pid, *ports(slot))
    return True


async def cut(running: Running, fault: Fault) -> bool:
    host = running.slots[fault.victim].host
    if host is None or host.is_cut:
        return False
    host.cut() if fault.both else host.deafen()
    await asyncio.sleep(fault.seconds)
    host.heal()
    return True


async def replace(running: Running, fault: Fault) -> bool:
    """Calls wait for a process that is stopped. Their own processes are stopped, too, until it was killed and there is
    another one: they are none the wiser."""
    slot = running.slots[fault.victim]
    async with slot.life:
        others = [each.process for each in running.slots if each is not slot]
        if running.over or any(each.is_stopped or each.is_over for each in [slot.process, *others]):
            return False
        slot.process.stop()
        await asyncio.sleep(ON_ITS_WAY)
        stopped = [each for each in others if not each.is_stopped and not each.is_over]
        for process in stopped:
            process.stop()
        try:
            slot.kill()
            await slot.start()
        finally:
            for process in stopped:
                if not process.is_over:
                    process.go_on()
    return True


async def reuse(running: Running, fault: Fault) -> bool:
    """While calls wait for a process that is stopped, their own process dies; a forked child holds its connections, and
    another process gets its id, with other bytes at the same addresses."""
    slot = running.slots[fault.victim]
    async with slot.life:
        target = running.slots[(fault.victim + 1) % len(running.slots)].process
        while slot.process.is_stopped or target.is_stopped:
            await asyncio.sleep(ON_ITS_WAY)
        if target.is_over or running.over:
            return False
        await slot.fork(fault.seconds + AFTER_FORK)
        stopping = asyncio.create_task(stopped(target, fault.seconds + ON_ITS_WAY))
        await asyncio.sleep(ON_ITS_WAY)
        await slot.start(pid=slot.kill())
        await stopping
    return True


Kind = Callable[[Running, Fault], Awaitable[bool]]

KINDS: dict[str, Kind] = {
    "stop": stop,
    "kill": kill,
    "restart": restart,
    "fork": fork,
    "reset": reset,
    "cut": cut,
    "replace": replace,
    "reuse": reuse,
}
