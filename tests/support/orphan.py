"""A process that connects to an engine on its host and ends, while a child of it goes on with the connection.

`python -m support.orphan NAME WHEN`: the hello is said "before" the process ends, "after" it did, or "never". Then the
child sends what it is told to, in lines of hexadecimal digits, and prints what comes back.
"""

from __future__ import annotations

import os
import socket
import sys

from . import wire
from .hello import Hello, Permit, connect_on_host, identity, read_answer, say


def greet(connection: socket.socket, name: str, permit: Permit) -> None:
    say(connection, Hello(identity(name), permit_at=permit.address).encode(), [permit.file])
    print(read_answer(connection), flush=True)


def main(name: str, when: str) -> None:
    connection, permit = connect_on_host(name), Permit()
    if when == "before":
        greet(connection, name, permit)
    if os.fork():
        os._exit(0)
    sys.stdin.readline()  # the process has ended, and has a successor
    if when == "after":
        greet(connection, name, permit)
    for line in sys.stdin:
        say(connection, bytes.fromhex(line))
        print(wire.read_status(connection), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
