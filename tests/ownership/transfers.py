"""READs and WRITEs of a slot, and what is looked at around each:

1. A buffer is taken, the one that rested longest: nothing may have touched it since its last call.
2. It is filled with words for the places that they are sent to, and its shadow with what covers it after the call.
3. For a WRITE its places are looked at: what was acknowledged there must still stand.
4. The call is made. It may be that the buffer is unregistered meanwhile.
5. What a READ returned is judged, or the places of a WRITE that was acknowledged.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

from support.peer import PeerError

from . import arena, plan, words
from .model import Incarnation, Kept, Model, Operation, State, Violation
from .plan import Transfer
from .slots import AT_ONCE, Process, Slot
from .words import Kind
from .worker import NOT_IN_USE, OWN_LIMIT

STREAMS = 4  # of calls of each slot, at the same time
SYNC_LIMIT = 10.0  # seconds: MC_TRANSFER_TIMEOUT for finding the peer, and once more for the transfer
LOST = -9999  # code of a call whose process was killed


class Running(Protocol):
    """What streams know of their world."""

    plan: plan.World
    model: Model
    slots: Sequence[Slot]
    over: bool

    def violated(self, violation: Violation) -> None:
        """A promise was not kept: raise it, or note it."""


class Stream:
    """The calls of a slot, one after the other."""

    def __init__(self, running: Running, slot: Slot, number: int) -> None:
        self._running = running
        self._model = running.model
        self._slot = slot
        self._steps: Iterator[Transfer] = plan.transfers(running.plan, slot.index, number)

    async def run(self) -> None:
        for step in self._steps:
            if self._running.over:
                return
            try:
                await self._make(step)
            except PeerError:
                pass  # the process was killed; there will be another one
            except Violation as violation:
                self._running.violated(violation)
            await asyncio.sleep(step.pause)

    async def _make(self, step: Transfer) -> None:
        process, engine = await self._slot.until_up()
        if not process.buffers:
            return
        buffer = process.buffers.popleft()
        try:
            await self._slot.check_rest(process, buffer)
            await self._register(process, buffer)
            if self._slot.engine is engine:
                await self._call(step, process, engine, buffer)
        finally:
            process.buffers.append(buffer)

    async def _register(self, process: Process, buffer: int) -> None:
        """Register a buffer again that was unregistered during a call."""
        is_wanted = buffer % 2 == 0 and buffer not in process.registered and process.is_ours
        if is_wanted and await process.ask("register", area=buffer) == 0:
            process.registered.add(buffer)

    async def _call(self, step: Transfer, process: Process, engine: Incarnation, buffer: int) -> None:
        meant = self._meant(step)
        operation = self._model.plan(
            step.opcode, engine, meant, step.region, step.spans, step.way, step.limit, buffer
        )  # fmt: skip
        self._fill(process, operation)
        target = self._running.slots[meant.slot]
        if operation.writes:
            target.look_at(operation)
        kept = self._model.begin(operation, functools.partial(process.submitted, buffer))
        retracting = asyncio.create_task(self._retract(step, process, operation))
        try:
            code = await self._ask(process, operation)
            self._note(operation, code)
            self._model.end(operation, code)
            process.rests[buffer] = operation
            self._look(process, operation, kept, target)
        finally:
            if operation.ended is None:
                self._model.end(operation, LOST)
            await retracting

    def _meant(self, step: Transfer) -> Incarnation:
        """The incarnation that a call is meant for: the latest one of a slot, or one that is gone."""
        latest = self._running.slots[step.target].latest
        assert latest is not None
        if step.stale < 0:
            return latest
        used = {slot.latest.name for slot in self._running.slots if slot.latest}
        gone = sorted({name for slot in self._running.slots for name in slot.names} - used)
        if not gone:
            return latest
        self._model.counts["calls by names of engines that are gone"] += 1
        return self._model.last_named(gone[int(step.stale * len(gone))])

    def _fill(self, process: Process, operation: Operation) -> None:
        before, after = (Kind.PAYLOAD, Kind.RETURNED) if operation.writes else (Kind.EMPTY, Kind.CANARY)
        process.body(operation.buffer)[: operation.count] = operation.words(before)
        process.shadow(operation.buffer)[: operation.count] = operation.words(after)
        process.rests.pop(operation.buffer, None)
        process.is_asked(operation.buffer)

    async def _ask(self, process: Process, operation: Operation) -> int:
        limit = SYNC_LIMIT if operation.way in OWN_LIMIT else 2 * operation.limit + AT_ONCE
        offset, blocks = 0, []
        base = operation.meant.addresses[operation.region]
        for span in operation.spans:
            size = span.count * words.WORD
            blocks.append([offset, base + span.first * words.WORD, size])
            offset += size
        answer = await process.ask(
            "transfer",
            limit,
            area=operation.buffer,
            opcode=operation.opcode,
            target=operation.name,
            spans=blocks,
            length=offset,
            way=operation.way,
            seconds=operation.limit,
        )
        if answer["error"]:
            operation.remark += f"; {answer['error']}"
        return int(answer["code"])

    async def _retract(self, step: Transfer, process: Process, operation: Operation) -> None:
        """Unregister the buffer of a call that is under way: it is the caller's again when that has returned."""
        if step.retract < 0 or operation.buffer not in process.registered:
            return
        try:
            code = await process.ask("retract", SYNC_LIMIT, area=operation.buffer, delay=step.retract)
        except PeerError:
            return
        if code == NOT_IN_USE:
            return
        when = "during" if operation.ended is None else "after"
        operation.remark += f"; its buffer was unregistered {when} the call, with {code}"
        self._model.counts[f"buffers unregistered {when} a call" if code == 0 else "buffers not unregistered"] += 1
        if code == 0:
            process.registered.discard(operation.buffer)

    def _note(self, operation: Operation, code: int) -> None:
        outcome = "acknowledged" if code == 0 else "failed"
        side = "" if operation.initiator.ours else "Mooncake's "
        self._model.counts[f"{side}{operation.opcode}s {outcome}"] += 1
        self._model.counts[f"calls by {operation.way} {outcome}"] += 1

    def _look(self, process: Process, operation: Operation, kept: Kept, target: Slot) -> None:
        if not operation.acknowledged:
            return
        if operation.writes:
            target.look_at(operation)
        else:
            self._model.check_read(operation, process.result(operation.buffer)[: operation.count].copy(), kept)


class Owner:
    """Takes the regions of a slot back now and then, and offers them again."""

    def __init__(self, running: Running, slot: Slot) -> None:
        self._running = running
        self._model = running.model
        self._slot = slot

    async def run(self) -> None:
        for step in plan.withdrawals(self._running.plan, self._slot.index):
            await asyncio.sleep(step.pause)
            if self._running.over:
                return
            try:
                async with self._slot.memory:
                    await self._withdraw(step)
            except PeerError:
                pass
            except Violation as violation:
                self._running.violated(violation)

    async def _withdraw(self, step: plan.Withdrawal) -> None:
        process, engine = await self._slot.until_up()
        region = engine.regions[step.region]
        region.turn(State.CHANGING, self._model.now())
        code = await process.ask("unregister", area=region.index)
        if self._slot.engine is not engine:
            return
        if code != 0:
            # What becomes of it is not known: it is not looked at until it can be taken back.
            self._model.counts["regions not taken back"] += 1
            return
        self._model.counts["regions taken back"] += 1
        region.turn(State.WITHDRAWN, self._model.now())
        await asyncio.sleep(step.rest)
        if self._slot.engine is not engine:
            return
        await self._slot.check(process, region)
        region.turn(State.CHANGING, self._model.now())
        self._slot.fill(process, region)
        await process.ask("load", areas=[region.index])
        code = await process.ask("register", area=region.index)
        if code == 0 and self._slot.engine is engine:
            region.turn(State.OFFERED, self._model.now())


class Watch:
    """Looks at all offered memory of a slot, again and again."""

    PAUSE = 0.25  # seconds

    def __init__(self, running: Running, slot: Slot) -> None:
        self._running = running
        self._slot = slot

    async def run(self) -> None:
        while not self._running.over:
            await self.look()
            await asyncio.sleep(self.PAUSE)

    async def look(self) -> None:
        process, engine = await self._slot.until_up()
        for region in engine.regions:
            try:
                await self._slot.check(process, region)
            except PeerError:
                return
            except Violation as violation:
                self._running.violated(violation)
            await asyncio.sleep(0)  # the answers that came meanwhile

    async def look_at_buffers(self) -> None:
        """Look at all buffers, which no call uses any more."""
        process, _ = await self._slot.until_up()
        for buffer in range(arena.REGIONS, arena.AREAS):
            try:
                await self._slot.check_rest(process, buffer)
            except Violation as violation:
                self._running.violated(violation)
