"""A peer that sends one request by an offer, and its payload little by little, until the target ends the connection."""

from __future__ import annotations

import json
import struct
import time

from support import hello, wire

from .pages import ROW, TOKENS

STRIDED = 0x20  # of an opcode
BODY = struct.Struct("<16sQQ")  # key · id of the transfer · bytes of a run; then the axes
AXIS = struct.Struct("<Qq")  # how often · bytes from one time to the next
RUN = ROW // 2
PAYLOAD = RUN * TOKENS
AT_ONCE = PAYLOAD // 3 // 8 * 8
PIECE = 20  # bytes that are sent at a time
REVOKED = 9  # of a status frame
PAUSE = 0.0005  # seconds between them


def request(offer: str, whole: bool) -> bytes:
    """The request for half of a head's bytes in the first page that is offered: for the first half, where it is whole,
    or else for half of each row."""
    offered = json.loads(offer)
    place = offered["layout"]["tensors"][0]
    address = place["addresses"][0] + offered["blocks"][0] * place["strides"][1]
    head = wire.HEADER.pack(PAYLOAD, address, wire.WRITE | wire.V2 | STRIDED)
    key = bytes.fromhex(offered["key"])
    if whole:
        return head + BODY.pack(key, 1, PAYLOAD)
    return head[:17] + b"\x01" + head[18:] + BODY.pack(key, 1, RUN) + AXIS.pack(TOKENS, ROW)


def trickle(offer: str, whole: bool, path: str, word: bytes) -> str:
    """Send the request and its payload on a connection of their own, and say how that has ended."""
    name = json.loads(offer)["engine"]
    with hello.connect(name, path) as connection:
        hello.say(connection, hello.Hello(hello.identity(name)).encode())
        answer = hello.read_answer(connection)
        assert answer is not None and answer.code == wire.OK and answer.flags & hello.STRIDED, answer
        payload = word * (PAYLOAD // len(word))
        try:
            connection.sendall(request(offer, whole) + payload[:AT_ONCE])
            for at in range(AT_ONCE, PAYLOAD, PIECE):
                time.sleep(PAUSE)
                connection.sendall(payload[at : at + PIECE])
        except ConnectionError:
            return "cut off"
        code = wire.read_status(connection)
        return "done" if code == wire.OK else "revoked" if code == REVOKED else "cut off"
