"""A middle man between engines with a secret, what he has recorded, and strangers who speak TLS to each door of an
engine: its two ports, and its socket for engines of the same host."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import pytest

from support import paths, wire
from support.authority import Authority
from support.memory import Memory, addresses, transfer
from support.peer import Peer
from support.peers import Peers
from support.ports import free_range
from support.process import sockets_of
from support.relay import TO_INITIATOR, TO_TARGET, Alteration, Relay, relaying
from support.world import QUICK

HERE, THERE = "127.0.0.9", "127.0.0.1"  # where the middle man listens in the engine's place, and where the engine does
MARK = b"KV cache of a tenant; "
SIZE = len(MARK) * 200
HANDSHAKES, DATA, SAME_HOST = "handshake port", "data port", "socket of the host"
DOORS = (HANDSHAKES, DATA, SAME_HOST)
ALTERED = "bad record MAC"  # what TLS says of bytes that were not made for this connection
LIMIT = 20.0  # seconds until a connection of a stranger has ended


class Target(NamedTuple):
    """An engine with memory, and its doors."""

    memory: Memory
    ports: dict[str, int]

    @property
    def peer(self) -> Peer:
        return self.memory.peer

    def connect(self, door: str) -> socket.socket:
        if door != SAME_HOST:
            return wire.connect((THERE, self.ports[door]), LIMIT)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(LIMIT)
        connection.connect("\0" + same_host_socket(self.peer))
        return connection


def same_host_socket(peer: Peer) -> str:
    """Return the name of the socket at which an engine listens for those of its host."""
    own = {name[len("socket:[") : -1] for name in sockets_of(peer.pid)}
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return next(line[-1][1:] for line in lines if line[6] in own and line[-1].startswith("@kvferry-"))


def start(peers: Peers, name: str = THERE, **settings: str) -> Target:
    range_ = free_range(2)
    peer = peers("ours", **QUICK, **range_, **{paths.VARIABLE: "1"}, KVFERRY_LISTEN=THERE, **settings).create(name)
    memory = peer.memory(SIZE)
    write(memory, bytes(SIZE))
    handshakes = wire.split_name(peer.name)[1]
    data = next(int(port) for port in range_.values() if int(port) != handshakes)
    return Target(memory, {HANDSHAKES: handshakes, DATA: data})


def write(memory: Memory, data: bytes) -> None:
    memory.peer.ask("poke", region=memory.region, offset=0, data=data.hex())
    memory.model[:] = data


class Middle(NamedTuple):
    near: Memory
    target: Target
    relay: Relay

    def recorded(self, door: str) -> list[bytes]:
        """What initiators have sent to a door, of each connection."""
        found = [c for c in self.relay.recorded if c.port == self.target.ports[door]]
        return [bytes(c.passed[TO_TARGET]) for c in found]


@pytest.fixture
def middle(start_peer: Peers, newcomer: Callable[[], Memory], secret: str) -> Iterator[Middle]:
    """Two engines that meet by a middle man alone."""
    target = start(start_peer, HERE, KVFERRY_SECRET_FILE=secret)
    with relaying(HERE, THERE, list(target.ports.values())) as relay:
        yield Middle(newcomer(), target, relay)


@pytest.fixture
def newcomer(start_peer: Peers, secret: str) -> Callable[[], Memory]:
    """Start an initiator that uses TCP, with memory to send."""

    def made() -> Memory:
        peer = start_peer("ours", **QUICK, **{paths.VARIABLE: "0"}, KVFERRY_SECRET_FILE=secret).create()
        memory = peer.memory(SIZE)
        write(memory, MARK * (SIZE // len(MARK)))
        return memory

    return made


def replay(target: Target, door: str, recorded: bytes, step: int) -> bytes:
    """Send what was recorded, in steps, and return the answer."""
    answer = b""
    with target.connect(door) as connection, contextlib.suppress(ConnectionError):
        with contextlib.suppress(OSError):  # the target has ended it
            for start in range(0, len(recorded), step):
                connection.sendall(recorded[start : start + step])
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def test_a_middle_man_sees_nothing_and_what_he_has_recorded_opens_no_door(middle: Middle) -> None:
    target = middle.target
    transfer(middle.near, target.memory, "write", [(0, 0, SIZE)])
    assert middle.near.peer.call("send_probe", target.peer.name) == 0
    target.memory.check()
    for recorded in middle.relay.recorded:
        assert not any(MARK[:8] in passed for passed in recorded.passed.values())
    write(target.memory, bytes(SIZE))
    for door in DOORS:
        streams = middle.recorded(DATA if door == SAME_HOST else door)
        assert streams and all(len(stream) > 0 for stream in streams), "the engines have not met by the middle man"
        longest = max(streams, key=len)
        for step in (1, len(longest)):
            target.peer.begin_test()
            answer = replay(target, door, longest, step)
            assert MARK[:8] not in answer
            assert target.peer.logs(ALTERED), f"{door}: {target.peer.log()}"
    target.memory.check()


def offsets(stream: bytes, direction: str) -> dict[str, int]:
    """Return bytes to alter of a connection on which this has passed faithfully, all of them before a payload is
    believed: each is in another state of TLS."""
    starts = [0]
    while starts[-1] + 5 <= len(stream):
        starts.append(starts[-1] + 5 + int.from_bytes(stream[starts[-1] + 3 : starts[-1] + 5], "big"))
    return {
        "the random bytes of the first message": starts[0] + 5 + 6 + 10,
        "the certificates": starts[2] + 100,  # behind the record that changes the cipher
        "what is said first": starts[-3]
        + 10,  # the record before the last one: a hello, a request, or the answer to them
        "the payload": starts[-2] + 1000 if direction == TO_TARGET else starts[-3] + 20,
    }


@pytest.mark.parametrize("door", [HANDSHAKES, DATA])
@pytest.mark.parametrize("direction", [TO_TARGET, TO_INITIATOR])
def test_a_middle_man_who_alters_a_byte_gets_no_payload_through_and_both_sides_say_so(
    middle: Middle, newcomer: Callable[[], Memory], door: str, direction: str
) -> None:
    target, relay = middle.target, middle.relay
    transfer(middle.near, target.memory, "write", [(0, 0, SIZE)])
    write(target.memory, bytes(SIZE))
    port = target.ports[door]
    longest = max((bytes(c.passed[direction]) for c in relay.recorded if c.port == port), key=len)
    for what, offset in offsets(longest, direction).items():
        if what == "the payload" and door == HANDSHAKES:
            continue
        near = newcomer()
        target.peer.begin_test()
        relay.alteration = Alteration(port, direction, offset)
        result = near.peer.move(target.peer.name, "write", addresses(near, target.memory, [(0, 0, SIZE)]))
        relay.alteration = None
        assert result["code"] != 0, what
        target.memory.check()
        # The target ends a connection to the handshake port with its answer, and may not be there to hear of that one.
        answered = door == HANDSHAKES and direction == TO_INITIATOR and what == "what is said first"
        for peer in (near.peer,) if answered else (near.peer, target.peer):
            assert peer.logs(ALTERED), f"{what}: {peer}: {peer.log()}"
        near.peer.kill()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("demanded", ["a secret", "certificates"])
def test_a_stranger_who_speaks_tls_is_refused_at_each_door(
    start_peer: Peers, secret: str, tmp_path: Path, demanded: str, door: str
) -> None:
    own, foreign = Authority(tmp_path / "cluster"), Authority(tmp_path / "elsewhere")
    target = start(
        start_peer, **({"KVFERRY_SECRET_FILE": secret} if demanded == "a secret" else own.issue("prefill.kv"))
    )
    for certificate in (None, foreign.issue("decode.kv")):
        target.peer.begin_test()
        assert ask_by_tls(target, door, certificate) == b""
        assert target.peer.logs("is refused: it "), target.peer.log()
        target.memory.check()


def ask_by_tls(target: Target, door: str, certificate: Optional[dict[str, str]]) -> bytes:
    """Ask for a descriptor or to write, inside of TLS, and return the answer: nothing when TLS ends before one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["kvferry/1"])
    if certificate:
        context.load_cert_chain(certificate["KVFERRY_TLS_CERT"], certificate["KVFERRY_TLS_KEY"])
    with target.connect(door) as connection:
        try:
            with context.wrap_socket(connection) as secured:
                if door == HANDSHAKES:
                    secured.sendall(wire.handshake_frame(wire.METADATA, b"{}"))
                else:
                    secured.sendall(wire.header(wire.WRITE | wire.V2, target.memory.address, SIZE) + MARK * 200)
                return secured.recv(1 << 16)
        except (ssl.SSLError, ConnectionError):
            return b""
