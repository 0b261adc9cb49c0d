"""What somebody sees who captures every packet between two engines."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from support import hello
from support.memory import Memory
from support.network import FAR, NEAR, Network
from support.peer import Peer
from support.peers import Peers
from support.process import until

MARK = b"KV cache of a tenant; "  # what the memory consists of
SIZE = len(MARK) * 20_000
NAME, TEXT = "notification-from-near", "request 4711 is prefilled"
LOCATION = "cpu:7"
WITHIN = 20.0  # seconds in which a notification arrives


class Seen(NamedTuple):
    """Which secrets were in the packets. None of them can be there by chance."""

    payload: bool
    name: bool  # of the engine
    address: bool  # of memory, as a descriptor or a request has it
    location: bool
    notification: bool
    descriptor: bool
    hello: bool


def marked(peer: Peer) -> Memory:
    memory = peer.memory(SIZE, location=LOCATION)
    write(memory, MARK * (SIZE // len(MARK)))
    return memory


def write(memory: Memory, data: bytes) -> None:
    memory.peer.ask("poke", region=memory.region, offset=0, data=data.hex())
    memory.model[:] = data


def captured(namespace: Network, file: Path, near: Memory, far: Memory) -> bytes:
    """Move the memories in both directions, with a notification, and return all that passed the interface."""
    with namespace.running("support.capture", str(file)) as capture:
        assert capture.stdin and capture.stdout
        assert capture.stdout.readline() == "began\n"
        for opcode in ("write", "read"):
            block = [[near.address, far.address, SIZE]]
            result = near.peer.move(far.peer.name, opcode, block, "batch_opcode", (NAME, TEXT))
            assert result["code"] == 0
        assert near.peer.call("send_probe", far.peer.name) == 0
        came: list[list[str]] = []

        def arrived() -> bool:
            came.extend(far.peer.ask("notifies", engine="main"))
            return came == [[NAME, TEXT]] * 2

        until(arrived, WITHIN, "the notifications arrive")
        capture.stdin.close()
        counted = json.loads(capture.stdout.readline())
    assert counted["packets"] > 0 and counted["lost"] == 0, counted
    return file.read_bytes()


def seen(packets: bytes, far: Memory) -> Seen:
    pieces = [(MARK * 2)[i : i + 8] for i in range(len(MARK))]
    return Seen(
        payload=any(piece in packets for piece in pieces),
        name=far.peer.name.encode() in packets,
        address=str(far.address).encode() in packets or struct.pack("<Q", far.address) in packets,
        location=LOCATION.encode() in packets,
        notification=NAME.encode() in packets or TEXT.encode() in packets,
        descriptor=b"tcp_data_port" in packets,
        hello=hello.HEAD.pack(0, hello.MAGIC, hello.OPCODE, hello.VERSION, 0, hello.BODY.size) in packets,
    )


@pytest.mark.parametrize("secured", [False, True], ids=["without a secret", "with a secret"])
def test_with_a_secret_nothing_is_in_the_clear_that_is_without_one(
    namespace: Network, start_in: Peers, secret: str, tmp_path: Path, secured: bool
) -> None:
    """The engines without a secret show that the capture sees everything."""
    settings = {"KVFERRY_SECRET_FILE": secret} if secured else {}
    near, far = marked(start_in(**settings).create(NEAR)), marked(start_in(**settings).create(FAR))
    packets = captured(namespace, tmp_path / "packets", near, far)
    assert len(packets) > 2 * SIZE, "less than the payload was captured"
    assert seen(packets, far) == Seen(*[not secured] * len(Seen._fields))
    near.check()
    far.check()
