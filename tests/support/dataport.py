"""Where a peer takes data connections: its data port, and the socket for engines of this host."""

from __future__ import annotations

from collections.abc import Collection

from . import wire
from .process import connections_to, same_host_connections, until

LIMIT = 30.0  # seconds until a connection must be there


class DataPort:
    def __init__(self, name: str) -> None:
        described = wire.descriptor(name)
        self.port = int(described["tcp_data_port"])
        self._socket = described.get("kvferry", {}).get("neighbour")

    def connections(self) -> set[str]:
        """Return what tells the established connections to the peer from each other."""
        by_tcp = {str(port) for port in connections_to(self.port)}
        return by_tcp | {line[6] for line in same_host_connections() if line[-1] == f"@{self._socket}"}

    def wait_for_connection(self, before: Collection[str] = ()) -> None:
        """Wait for a connection that is none of those there were before."""
        until(
            lambda: bool(self.connections().difference(before)),
            LIMIT,
            f"a connection to port {self.port}, or beside it",
        )
