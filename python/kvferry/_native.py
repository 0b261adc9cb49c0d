"""The engine of the native package: memory that is registered, peers, transfers, messages.

It is built on the inner engine that mooncake.engine uses, too (_engine.py). This module has what belongs to the engine
as a whole; _regions, _peers, _transfers and _inbox have the rest, and _completions how the ends of transfers are seen.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from kvferry import _access
from kvferry import _engine as inner
from kvferry._bindings import KVFERRY_OK, Functions, kvferry_outcome_t, kvferry_transfer_t
from kvferry._buffers import buffer_of
from kvferry._completions import Completions, Flight, Kept
from kvferry._errors import UNREACHABLE, EngineClosed, Error, PeerUnreachable, RangeRejected, TransferError
from kvferry._ffi import last_error
from kvferry._inbox import Inbox, Message
from kvferry._layouts import Place
from kvferry._library import check_process, load
from kvferry._managed import OfProcess
from kvferry._offers import Offer, Offered
from kvferry._peers import Descriptor, Notify, Peer
from kvferry._ranges import Range
from kvferry._regions import Region, Registration, Slice
from kvferry._spans import Span
from kvferry._transfers import Transfer
from kvferry._waiting import limit, seconds, setting
from kvferry.stats import Stats

P2P = "P2PHANDSHAKE"

# Status codes, negated, of a transfer that the engine refuses at once.
_INVALID_ARGUMENT, _NO_SUCH_MEMORY = -1, -3


class Engine(OfProcess):
    """An engine: memory that peers may read and write, and transfers between it and theirs.

    Any thread may use it, and any number of event loops. It starts no thread of Python, but one for callbacks and for
    spans that belong to no event loop, when the first one is given. It ends by close(), at the end of a with or async
    with block, when the last reference to it, its regions, peers and transfers goes, or at interpreter exit. Transfers
    that are under way then end, too, within about a second, or some seconds where something is stuck in a system call
    or on a device. In a child that was forked it cannot be used: each call is a LibraryError. The child makes its own.
    """

    _instead = ": send its name, or Engine.describe()"

    def __init__(
        self,
        name: str = "127.0.0.1",
        *,
        metadata: str = P2P,
        listen: str | Sequence[str] | None = None,
        allow: str | Sequence[str] | None = None,
        names: str | Sequence[str] | None = None,
        security: str | None = None,
        secret_file: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_peers: str | Sequence[str] | None = None,
        max_sessions: int | None = None,
        max_messages: int | None = None,
        staging_pool_size: int | None = None,
        settings: Mapping[str, str] | None = None,
        timeout: float | None = None,
        start_timeout: float = inner.DEFAULT_TIMEOUT,
    ) -> None:
        """Start an engine.

        name is what peers open: with P2PHANDSHAKE a host or an address of this machine, and the engine adds its port.
        metadata is P2PHANDSHAKE or the connection string of a metadata store. What is None comes from the environment,
        where listen is KVFERRY_LISTEN, and so on; max_messages, which wait to be taken, is
        MC_HANDSHAKE_MAX_NOTIFY_ENTRIES. docs/configuration.md says what each takes. settings has others, by their names
        there.

        timeout is the time limit of transfers in seconds, to which a second for each GiB is added; None takes
        MC_TRANSFER_TIMEOUT. start_timeout limits the start, which may wait for a metadata store.

        EngineError says why it cannot be made: also for a setting that does not exist or has no valid value.
        """
        own = {
            "KVFERRY_LISTEN": _joined(listen, "listen"),
            "KVFERRY_ALLOW": _joined(allow, "allow"),
            "KVFERRY_NAMES": _joined(names, "names"),
            "KVFERRY_SECURITY": None if security is None else _something(security, "security"),
            "KVFERRY_SECRET_FILE": _path(secret_file, "secret_file"),
            "KVFERRY_TLS_CERT": _path(tls_cert, "tls_cert"),
            "KVFERRY_TLS_KEY": _path(tls_key, "tls_key"),
            "KVFERRY_TLS_CA": _path(tls_ca, "tls_ca"),
            "KVFERRY_TLS_PEERS": _joined(tls_peers, "tls_peers"),
            "KVFERRY_MAX_SESSIONS": _number(max_sessions),
            "MC_HANDSHAKE_MAX_NOTIFY_ENTRIES": _number(max_messages),
            "KVFERRY_STAGING_POOL_SIZE": _number(staging_pool_size),
            **_named(settings),
        }
        if timeout is not None:
            limit(timeout)
        limit(start_timeout, "start_timeout")
        self._kept = Kept()
        given = {key: value for key, value in own.items() if value is not None}
        self._engine = inner.Engine(name, metadata, None, self._kept, start_timeout, given, "start_timeout")
        self._pid = os.getpid()
        self._functions = load()
        self._completions = Completions(self._functions, self._engine.handle, self._kept)
        self._inbox = Inbox(self._engine, self._completions, self._pid)
        self._timeout = self._engine.timeout() if timeout is None else timeout
        self.limited_by = setting() if timeout is None else "the engine's timeout"
        self._name = self._engine.name() if metadata == P2P else name
        self._port = self._engine.rpc_port()

    # About it

    @property
    def name(self) -> str:
        """What peers open it by: host:port with P2PHANDSHAKE, otherwise its name in the metadata store."""
        return self._name

    @property
    def port(self) -> int:
        """The port of its handshakes."""
        return self._port

    @property
    def timeout(self) -> float:
        """The time limit of transfers in seconds, without the second for each GiB."""
        return self._timeout

    @property
    def closed(self) -> bool:
        """Whether close() was called. Another thread may still be in it."""
        return self._completions.ended

    @property
    def native(self) -> tuple[Functions, int]:
        """The native library's functions, and the engine's handle for them (transfer_engine_ext.h)."""
        return self._functions, self._engine.handle

    def stats(self) -> Stats:
        """What it has done since it was made, and does now: see kvferry.stats. EngineClosed once it is closed."""
        self.check_usable("stats")
        try:
            return self._engine.stats()
        except RuntimeError as e:
            self.check_usable("stats")
            raise Error(str(e), who=self._name, what="stats") from e

    def check_fork(self) -> None:
        """LibraryError in a child that was forked since the engine was made."""
        check_process(self._pid)

    def check_usable(self, what: str) -> None:
        """LibraryError in a forked child, and EngineClosed where it was closed."""
        self.check_fork()
        if self.closed:
            raise EngineClosed("the engine is closed", who=self._name, what=what)

    # Its memory

    def register(self, memory: Any, access: str = "read-write", *, location: str = "*") -> Region:
        """Register memory, for peers to do with it what access says: "read-write", "read", "write" or "none".

        memory is a tensor of PyTorch on a CPU, a GPU or an NPU, an array, or any object with contiguous memory by the
        buffer protocol, __cuda_array_interface__ or DLPack. The Region keeps it. location is where it is, as "cuda:0"
        or "cpu:1"; the engine finds out about "*". Transfers may also move memory of the host that is not registered.

        TypeError for an object without memory; ValueError for memory that is empty or not contiguous, or read-only and
        to be written; Error where it cannot be registered, as memory that is registered with the engine already.
        """
        flags = _access.flags(access)
        buffer = buffer_of(memory)
        what = f"register {buffer.nbytes} bytes at {buffer.address:#x}"
        if buffer.nbytes == 0:
            raise ValueError("there are no bytes to register")
        if buffer.readonly and flags & _access.NAMES["write"]:
            raise ValueError(f'this {type(memory).__name__} is read-only: register it with access="read"')
        self.check_usable(what)
        if self._engine.register(buffer.address, buffer.nbytes, location, flags) != KVFERRY_OK:
            reason = self._engine.last_error()
            self.check_usable(what)
            raise Error(reason, who=self._name, what=what)
        return Region(self, Registration(self._functions, self._engine.handle, buffer, self._kept.registered), access)

    def describe(self, *memory: Region | Slice | Range) -> Descriptor:
        """Its name, and ranges of its memory, to be sent to a peer, whose engine opens it by this."""
        for part in memory:
            if not isinstance(part, (Region, Slice, Range)):
                raise TypeError(f"what is described is a Region, a slice of one or a Range, not {type(part).__name__}")
            region = part.region if isinstance(part, Slice) else part
            if isinstance(region, Region) and region.closed:
                raise ValueError(f"{region!r} is already closed")
        return Descriptor(self._name, [Range(m.address, m.nbytes) for m in memory])

    def offer(self, place: Place, access: str = "write", *, once: bool = False, lifetime: float | None = None) -> Offer:
        """Offer the blocks or slots of a place to one peer, from position first to the end of the table.

        place is Layout.blocks() or Layout.slots() of this process. access is "read", "write" or "read-write". once: for
        one transfer alone. lifetime is for how long, in seconds; None is until the offer is revoked. Only kvferry
        engines understand offers. ValueError says what is wrong with the place, as a block that is twice in its table.
        """
        self.check_usable("offer")
        return Offer(self, place, access, once, lifetime)

    # Its peers

    def open(self, peer: str | Descriptor | Offered, *, timeout: float | None = None) -> Peer:
        """Open a peer, by its name, a descriptor or an offer, and wait for its answer, for up to timeout seconds.

        PeerUnreachable or TimedOut says why not. Ctrl-C ends the wait. In a coroutine use connect().
        """
        opened = self._peer(peer)
        opened.opening(timeout).result()
        return opened

    async def connect(self, peer: str | Descriptor | Offered, *, timeout: float | None = None) -> Peer:
        """open() for a coroutine."""
        opened = self._peer(peer)
        await opened.opening(timeout)
        return opened

    def _peer(self, peer: str | Descriptor | Offered) -> Peer:
        if not isinstance(peer, (str, Descriptor, Offered)):
            raise TypeError(f"a peer is opened by its name, a Descriptor or an Offered, not {type(peer).__name__}")
        if isinstance(peer, Offered):
            return Peer(self, peer.engine)
        if isinstance(peer, Descriptor):
            return Peer(self, peer.name, peer.ranges)
        return Peer(self, peer)

    def start(
        self,
        what: kvferry_transfer_t,
        flight: Flight,
        who: str,
        text: str,
        total: int,
        rejected: type[TransferError],
        span: Span | None,
    ) -> Transfer:
        """Start a transfer, for a Peer."""
        self.check_usable(text)
        transfer = Transfer(self, self._completions, flight, who, text, total, rejected, span)
        code = self._completions.start(what, flight)
        if code != KVFERRY_OK:
            refusal = self._refusal(code, who, text)
            if span is not None:
                span.finish(kvferry_outcome_t(), 0, refusal)
                span.make()
            raise refusal
        if span is not None:
            transfer.add_done_callback(_nothing)  # so that somebody sees its end, also where the program forgets it
        return transfer

    def _refusal(self, code: int, who: str, what: str) -> Exception:
        """Why the library did not start a transfer."""
        reason = last_error(self._functions)
        self.check_usable(what)
        if code == _INVALID_ARGUMENT:
            return ValueError(f"{who}: {what}: {reason}")
        kind = RangeRejected if code == _NO_SUCH_MEMORY else PeerUnreachable if code in UNREACHABLE else TransferError
        return kind(reason, who=who, what=what)

    # Messages

    def send(self, peer: Peer | str, message: Notify, *, timeout: float | None = None) -> Transfer:
        """Start sending a message to a peer: see Peer.send(). A peer that is not open is opened."""
        to = peer if isinstance(peer, Peer) else self._peer(peer)
        if to.engine is not self:
            raise ValueError(f"{to!r} was opened by another engine")
        return to.send(message, timeout=timeout)

    def messages(self) -> AsyncIterator[Message]:
        """async for: the messages that peers send, until the engine is closed; each is returned once.

        EngineClosed where it was closed before.
        """
        self.check_usable("messages")
        return self._inbox.each()

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None where none comes within timeout seconds, or the engine is closed meanwhile. timeout
        None is without a limit. Ctrl-C ends the wait. In a coroutine use messages()."""
        self.check_usable("receive")
        return self._inbox.wait(math.inf if timeout is None else seconds(timeout, "a timeout"))

    # Its end

    def close(self) -> None:
        """End the engine, its transfers with EngineClosed, and its registrations. When it returns, nothing touches
        their memory any more, unless the log says that something is stuck. A second call does nothing.

        It takes up to a second, and longer where something is stuck. In a forked child it does nothing.
        """
        if os.getpid() != self._pid:
            return
        self._completions.drain()  # what has ended keeps its result
        self._completions.ended = True
        self._engine.close()
        self._completions.close()
        if self._engine.stuck is False:
            self._kept.release()

    def __enter__(self) -> Engine:
        self.check_usable("enter")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __repr__(self) -> str:
        return f"<Engine {self._name}{', closed' if self.closed else ''}>"


def _joined(values: str | Sequence[str] | None, name: str) -> str | None:
    if values is None:
        return None
    try:
        return _something(values if isinstance(values, str) else ",".join(values), name)
    except TypeError:
        raise TypeError(f"{name} is a str or a list of them, not {values!r}") from None


def _something(value: str, name: str) -> str:
    """A value that is not empty. An empty variable of the environment is one that is not set, and would let more peers
    connect than an empty list says."""
    if value == "":
        raise ValueError(f"{name} is empty: leave it out, or give it as None, to have what the environment says")
    return value


def _named(settings: Mapping[str, str] | None) -> Mapping[str, str]:
    if settings is not None and not isinstance(settings, Mapping):
        raise TypeError(f"settings has values by the names of settings, and is no {type(settings).__name__}")
    for key, value in (settings or {}).items():
        if not isinstance(value, (str, int)):
            raise TypeError(f"settings has a str for {key!r}, not {type(value).__name__}")
    return settings or {}


def _nothing(_: Transfer) -> None:
    """A callback."""


def _path(path: str | os.PathLike[str] | None, name: str) -> str | None:
    return None if path is None else _something(os.fsdecode(path), name)


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)
