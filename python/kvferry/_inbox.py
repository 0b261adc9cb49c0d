"""Messages between engines, on the notifications of Mooncake's protocol.

A notification has a name and a text. Data that is no text, or has a NUL, travels as base64, and the name then ends with
";base64". Mooncake's engines see it so.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from kvferry._completions import Completions, call_soon
from kvferry._ffi import utf8
from kvferry._library import check_process
from kvferry._waiting import LONGEST_WAIT

if TYPE_CHECKING:
    from kvferry._engine import Engine

BASE64 = ";base64"


class Message(NamedTuple):
    """What a peer has sent, by Peer.send() or with a transfer (notify=), or by a notification of Mooncake."""

    data: bytes
    name: str = ""

    @property
    def text(self) -> str:
        """The data as text; what is not UTF-8 is replaced by U+FFFD."""
        return self.data.decode("utf-8", "replace")


def encoded(message: Message | bytes | str) -> tuple[bytes, bytes]:
    """The name and the text of a notification. ValueError for a name that cannot be one, and for a lone surrogate."""
    if isinstance(message, str):
        message = Message(utf8(message, "a message"))
    elif isinstance(message, (bytes, bytearray, memoryview)):
        message = Message(bytes(message))
    elif not isinstance(message, Message):
        raise TypeError(f"a message is bytes, a str or a kvferry.Message, not {type(message).__name__}")
    if not isinstance(message.data, (bytes, bytearray, memoryview)) or not isinstance(message.name, str):
        raise TypeError(f"a kvferry.Message has bytes, and a str as its name, not {message!r}")
    name, data = message.name, bytes(message.data)
    if "\0" in name or name.endswith(BASE64):
        raise ValueError(f"the name of a message must not have a NUL character or end with {BASE64!r}: {name!r}")
    encoded_name = utf8(name, "the name of a message")
    if _is_text(data):
        return encoded_name, data
    return encoded_name + BASE64.encode(), base64.b64encode(data)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def decoded(name: str, text: str) -> Message:
    """The inverse of encoded(). Text that says it is base64 and is none stays as it is."""
    data = text.encode("utf-8", "surrogateescape")
    if name.endswith(BASE64):
        try:
            return Message(base64.b64decode(data, validate=True), name[: -len(BASE64)])
        except binascii.Error:
            pass
    return Message(data, name)


class Inbox:
    """The messages that an engine has received. Any thread may call it; each message is returned once."""

    def __init__(self, engine: Engine, completions: Completions, pid: int) -> None:
        """pid is of the process that the engine belongs to."""
        self._engine = engine
        self._pid = pid
        self._completions = completions
        self._messages: deque[Message] = deque()  # taken from the library, which bounds how many those are

    def take(self) -> Message | None:
        """The oldest message, or None."""
        if not self._messages and not self._completions.ended:
            self._messages.extend(decoded(name, text) for name, text in self._engine.notifies())
        try:
            return self._messages.popleft()
        except IndexError:  # none, or another thread has taken it
            return None

    def wait(self, timeout: float) -> Message | None:
        """take(), and wait for a message for up to timeout seconds, or until the engine is closed."""
        deadline = time.monotonic() + timeout
        self._completions.thread()  # it sees what arrives
        while True:
            arrived = threading.Event()
            self._completions.on_message(arrived.set)
            try:
                message = self.take()
                left = deadline - time.monotonic()
                if message is not None or left <= 0 or self._completions.ended:
                    return message
                arrived.wait(min(left, LONGEST_WAIT))
            finally:
                self._completions.forget(arrived.set)

    async def each(self) -> AsyncIterator[Message]:
        """Each message, as it arrives, until the engine is closed."""
        loop = asyncio.get_running_loop()
        while True:
            check_process(self._pid)
            arrived = loop.create_future()

            def wake(arrived: asyncio.Future[None] = arrived) -> None:
                call_soon(loop, _finish, arrived)

            watching = self._completions.watch(loop)
            watching.users += 1
            self._completions.on_message(wake)
            try:
                message = self.take()
                if message is None:
                    if self._completions.ended:
                        return
                    await arrived
            finally:
                watching.users -= 1
                self._completions.forget(wake)
            if message is not None:
                yield message


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
