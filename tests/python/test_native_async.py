"""The native package in event loops: transfers that are awaited, cancelled, and left behind."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
import weakref
from collections.abc import Awaitable, Iterator
from typing import Any, Callable

import numpy as np
import pytest

from kvferry import Cancelled, Engine, EngineClosed, Message, Peer, PeerUnreachable, RangeRejected, TimedOut, Transfer
from support.inprocess import run_python
from support.native import NOWHERE, SIZE, Couple, couple, some_bytes
from support.rawpeer import BASE, RawTarget, swallow

pytestmark = pytest.mark.each_path

LIMIT = 30.0  # seconds that anything here may take


@pytest.fixture
def pair(path: str) -> Iterator[Couple]:
    with couple() as made:
        yield made


@pytest.fixture
def silent() -> Iterator[RawTarget]:
    """A peer that takes all that it is sent and never answers."""
    with RawTarget(on_data=swallow) as target:
        yield target


def run(program: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(program(), LIMIT)

    return asyncio.run(limited())


def eventfds() -> int:
    """How many descriptors of this process are of the kind by which the ends of transfers are announced."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was the folder's
            count += os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventfd]"
    return count


def test_transfers_are_awaited(pair: Couple) -> None:
    source, back = some_bytes(), bytearray(SIZE)

    async def program() -> None:
        assert await pair.peer.write(source, pair.region) == SIZE
        assert await pair.peer.read(back, pair.region) == SIZE
        done = pair.peer.write(source, pair.region)
        assert [await done, await done] == [SIZE, SIZE]
        with pytest.raises(RangeRejected):
            await pair.peer.write(source, NOWHERE)

    run(program)
    assert back == source.tobytes()
    assert "kvferry-callbacks" not in [thread.name for thread in threading.enumerate()]


def test_thousands_are_awaited_together_in_several_loops(pair: Couple) -> None:
    loops, each, size = 3, 1000, 64
    source, failures = some_bytes(loops * each * size), []

    async def program(first: int) -> None:
        at = range(first * size, (first + each) * size, size)
        moved = await asyncio.gather(*(pair.peer.write(source[i : i + size], pair.region.address + i) for i in at))
        assert moved == [size] * each

    def thread(number: int) -> None:
        try:
            run(lambda: program(number * each))
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=thread, args=(i,)) for i in range(loops)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(2 * LIMIT)
    assert not failures
    assert (pair.memory[: source.nbytes] == source).all()


def test_several_tasks_and_loops_await_one_transfer(pair: Couple, silent: RawTarget) -> None:
    transfer = pair.near.open(silent.name).write(some_bytes(), BASE)
    ready, results = threading.Barrier(3), []

    async def program() -> None:
        async def wait() -> None:
            with pytest.raises(Cancelled):
                await transfer
            results.append(threading.current_thread().name)

        tasks = [asyncio.create_task(wait()) for _ in range(5)]
        await asyncio.sleep(0)
        ready.wait(LIMIT)
        await asyncio.gather(*tasks)

    threads = [threading.Thread(target=run, args=(program,)) for _ in range(2)]
    for t in threads:
        t.start()
    ready.wait(LIMIT)
    transfer.cancel()
    for t in threads:
        t.join(LIMIT)
    assert len(results) == 10


def test_a_task_that_is_cancelled_gives_its_transfer_up_and_ends_when_it_has(pair: Couple, silent: RawTarget) -> None:
    async def program() -> None:
        transfer = (await pair.near.connect(silent.name)).write(some_bytes(), BASE)

        async def wait() -> None:
            await transfer

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # once more, while it waits for the end
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transfer.done()
        assert isinstance(transfer.exception(), Cancelled)

    run(program)


def test_a_task_that_is_shielded_leaves_its_transfer_alone(pair: Couple, silent: RawTarget) -> None:
    async def program() -> None:
        transfer = (await pair.near.connect(silent.name)).write(some_bytes(), BASE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(transfer), 0.01)
        assert not transfer.done()
        transfer.cancel()
        with pytest.raises(Cancelled):
            await transfer

    run(program)


def test_a_task_that_nobody_has_goes_on(pair: Couple, silent: RawTarget) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        async def wait(peer: Peer) -> None:
            try:
                await peer.write(some_bytes(), BASE, timeout=0.2)
            except TimedOut:
                ended.set_result(None)

        asyncio.create_task(wait(await pair.near.connect(silent.name)))  # noqa: RUF006 - that is what is tested
        await asyncio.sleep(0.01)
        gc.collect()
        await ended

    run(program)


def test_time_limits_end_what_is_awaited(pair: Couple, silent: RawTarget) -> None:
    async def program() -> None:
        peer = await pair.near.connect(silent.name)
        with pytest.raises(TimedOut):
            await peer.write(some_bytes(), BASE, timeout=0.05)
        with pytest.raises(PeerUnreachable):
            await pair.near.connect("127.0.0.1:1")

    run(program)


def test_closing_the_engine_ends_what_is_awaited(pair: Couple, silent: RawTarget) -> None:
    async def program() -> None:
        async with Engine() as engine:
            transfer = (await engine.connect(silent.name)).write(some_bytes(), BASE)

            async def wait() -> None:
                await transfer

            async def listen() -> list[Message]:
                return [message async for message in engine.messages()]

            tasks = asyncio.create_task(wait()), asyncio.create_task(listen())
            await asyncio.sleep(0.01)
        with pytest.raises(EngineClosed):
            await tasks[0]
        assert await tasks[1] == []
        assert engine.closed

    run(program)


def test_loops_that_end_leave_nothing_behind(pair: Couple, silent: RawTarget) -> None:
    peer = pair.near.open(silent.name)
    left: list[Transfer] = []

    async def program() -> None:
        await pair.peer.write(some_bytes(10), pair.region.address)
        transfer = peer.write(some_bytes(), BASE)
        transfer.add_done_callback(lambda _: None)
        left.append(transfer)
        loops.append(weakref.ref(asyncio.get_running_loop()))

    loops: list[Any] = []
    run(program)
    gc.collect()
    before = eventfds()
    for _ in range(20):
        run(program)
    gc.collect()
    for transfer in left:
        transfer.cancel()  # whose loops are closed
        assert isinstance(transfer.exception(LIMIT), Cancelled)
    left.clear()
    gc.collect()
    assert not [loop for loop in loops if loop() is not None]
    assert eventfds() <= before
    run(program)


def test_a_loop_that_does_nothing_more_is_woken_no_more(pair: Couple) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        await pair.peer.write(some_bytes(10), pair.region.address)
        for _ in range(3):  # others move bytes meanwhile
            await loop.run_in_executor(None, pair.peer.write(some_bytes(10), pair.region.address).result)
            await asyncio.sleep(0.01)
        assert pair.near._completions._loops.get(loop) is None
        await pair.peer.write(some_bytes(10), pair.region.address)

    run(program)


def test_a_loop_that_cannot_watch_descriptors_awaits_transfers(pair: Couple, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any) -> None:
        raise NotImplementedError

    async def program() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", unable, raising=True)
        assert await pair.peer.write(some_bytes(), pair.region) == SIZE
        await pair.far.send(pair.near.name, "hello")
        async for message in pair.near.messages():
            assert message.text == "hello"
            break

    run(program)


def test_callbacks_of_a_loop_are_called_by_it_in_their_context(pair: Couple) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")

    async def program() -> None:
        loop, calls = asyncio.get_running_loop(), []
        caught: list[Any] = []
        loop.set_exception_handler(lambda _, context: caught.append(context["exception"]))
        variable.set("mine")

        def callback(transfer: Transfer) -> None:
            calls.append((asyncio.get_running_loop() is loop, variable.get(), transfer.done()))

        def fail(_: Transfer) -> None:
            raise KeyError("mine")

        transfer = pair.peer.write(some_bytes(), pair.region)
        transfer.add_done_callback(fail)
        transfer.add_done_callback(callback)
        variable.set("later")
        await transfer
        await asyncio.sleep(0)
        transfer.add_done_callback(callback)
        assert len(calls) == 1, "one that has ended is called soon, not at once"
        await asyncio.sleep(0)
        assert calls == [(True, "mine", True), (True, "later", True)]
        assert [str(e) for e in caught] == ["'mine'"]

    run(program)


def test_messages_arrive_in_a_loop(pair: Couple) -> None:
    async def program() -> None:
        received: list[Message] = []

        async def listen() -> None:
            async for message in pair.far.messages():
                received.append(message)
                if message.data == b"end":
                    return

        task = asyncio.create_task(listen())
        sent = [Message(b"%d" % i, "count") for i in range(100)]
        for message in sent:
            await pair.near.send(pair.peer, message)
        await pair.peer.write(some_bytes(10), pair.region.address, notify=b"end")
        await task
        assert received == [*sent, Message(b"end")]

    run(program)


def test_each_message_goes_to_one_of_those_who_listen(pair: Couple) -> None:
    async def program() -> None:
        received: list[bytes] = []

        async def listen() -> None:
            async for message in pair.far.messages():
                received.append(message.data)

        tasks = [asyncio.create_task(listen()) for _ in range(3)]
        await asyncio.gather(*(pair.peer.send(b"%d" % i) for i in range(50)))
        while len(received) < 50:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(map(int, received)) == list(range(50))
        await pair.peer.send(b"later")
        async for message in pair.far.messages():
            assert message.data == b"later", "a task that was cancelled takes none with it"
            break

    run(program)


def test_memory_of_an_abandoned_await_is_kept_until_nothing_touches_it(pair: Couple, silent: RawTarget) -> None:
    memory = np.zeros(SIZE, np.uint8)
    gone = weakref.ref(memory)

    async def program(memory: Any) -> None:
        peer = await pair.near.connect(silent.name)

        async def wait() -> None:
            await peer.write(memory, BASE)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(program(memory))
    del memory
    gc.collect()
    assert gone() is None, "what was given up has ended"


def test_ctrl_c_ends_a_program_that_awaits(path: str) -> None:
    done = run_python(
        """
import asyncio, kvferry
from support.rawpeer import BASE, RawTarget, swallow

async def main():
    async with kvferry.Engine() as engine:
        peer = await engine.connect(target.name)
        await peer.write(bytearray(1 << 20), BASE)

with RawTarget(on_data=swallow) as target:
    interrupt_soon()
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted")
"""
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
