"""Everything that passes the loopback interface of the network namespace, until the standard input ends:

    python -m support.capture FILE

It prints a line when it has begun, and in the end a line of JSON: how many packets it has written to FILE, and how many
were lost.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys

ALL = 0x0003  # ETH_P_ALL
PACKET_STATISTICS = 6
SOL_PACKET = 263
SO_RCVBUFFORCE = 33
ROOM = 256 << 20  # bytes of packets that wait to be read
LONGEST = 1 << 17  # bytes of a packet: segments are not cut on the loopback interface


def main() -> None:
    packets = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)) as raw, open(sys.argv[1], "wb") as file:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        raw.bind(("lo", ALL))
        print("began", flush=True)
        while True:
            ready, _, _ = select.select([raw, sys.stdin], [], [])
            if raw in ready:
                file.write(raw.recv(LONGEST))
                packets += 1
            elif ready:
                break
        _, lost = struct.unpack("II", raw.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(json.dumps({"packets": packets, "lost": lost}), flush=True)


if __name__ == "__main__":
    main()
