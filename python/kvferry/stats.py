"""What stats() of an engine returns: what the engine has done since it was made, and does now.

docs/operations.md says what the entries mean. A later version may have more of them.
"""

from __future__ import annotations

import json
from ctypes import create_string_buffer
from typing import TYPE_CHECKING, TypedDict, cast

if TYPE_CHECKING:
    from kvferry._bindings import Functions

_ROOM = 1 << 16  # bytes: what most descriptions fit


class Bucket(TypedDict):
    """How many durations do not exceed a bound."""

    le_seconds: float
    count: int


class Durations(TypedDict):
    """How long something took. p50_seconds and p99_seconds are estimates from the buckets."""

    count: int
    sum_seconds: float
    p50_seconds: float
    p99_seconds: float
    buckets: list[Bucket]


class Calls(Durations):
    """Requests of one kind to peers or to the metadata store."""

    failures: int


class Unfinished(TypedDict):
    """What has not ended."""

    batches: int
    requests: int
    bytes: int


class Moved(TypedDict):
    """What was moved in one direction: requests, and bytes by path ("tcp", "host", "local")."""

    requests: int
    bytes: dict[str, int]


class Connections(TypedDict):
    """Connections to a peer, by state."""

    connecting: int
    idle: int
    busy: int
    ending: int


class Flow(TypedDict):
    """What the kernel knows of TCP connections that are up, all together."""

    connections: int
    round_trip_seconds: float
    min_round_trip_seconds: float
    congestion_window_bytes: int
    peer_window_bytes: int
    segment_bytes: int
    delivery_bytes_per_second: int
    sent_bytes: int
    retransmitted_bytes: int
    received_bytes: int
    received_segments: int
    out_of_order_segments: int
    busy_seconds: float
    peer_limited_seconds: float
    send_buffer_limited_seconds: float


class InitiatorPeer(TypedDict):
    """A peer whose memory this engine reads and writes."""

    peer: str
    read: Moved
    write: Moved
    failures: dict[str, int]
    retries: int
    refusals: int
    connected: int
    lost: int
    unreachable: int
    connections: Connections
    queued_bytes: int
    in_flight_bytes: int
    tcp: Flow


class TargetPeer(TypedDict):
    """A host that reads and writes this engine's memory."""

    peer: str
    read: Moved
    write: Moved
    refusals: int
    lost: int
    connections: int
    tcp: Flow


class Sessions(TypedDict):
    """The data connections of peers."""

    open: int
    limit: int
    waiting: int
    served: int
    refused: int
    gave_way: int
    failed: int
    foreign: int


class Handshakes(TypedDict):
    """The connections at the handshake port."""

    open: int
    limit: int
    refused: int
    gave_way: int
    answered: dict[str, int]
    plain: int
    failed: int


class Notifications(TypedDict):
    """Messages between engines."""

    sent: int
    send_failures: int
    received: int
    refused: int
    waiting: int
    waiting_bytes: int


class SecurityFailures(TypedDict):
    """How often one of the two could not prove to the other who it is, by the peer's address and the reason."""

    peer: str
    reason: str
    count: int


class Security(TypedDict):
    """What was found out about peers."""

    mode: str
    refused: int
    older: int
    reloads: int
    failed_reloads: int
    not_allowed: int
    failures: list[SecurityFailures]


class Staging(TypedDict):
    """One direction of a device's staging: "out", from the device, "in", or "direct", from a device to this one."""

    device: str
    direction: str
    pool_bytes: int
    leased_bytes: int
    waits: int
    jobs: int
    failed_jobs: int
    bytes: int
    copy_seconds: float


class Process(TypedDict):
    """The process that the engine is in."""

    goroutines: int
    threads: int
    open_files: int
    max_files: int
    resident_bytes: int
    heap_bytes: int
    dropped_log_lines: int


class Stats(TypedDict):
    """An engine."""

    version: str
    engine: str
    identity: str
    uptime_seconds: float
    batches: dict[str, Durations]
    failed_batches: int
    requests: dict[str, int]
    bytes: dict[str, int]
    failures: dict[str, int]
    in_flight: Unfinished
    initiator: list[InitiatorPeer]
    target: list[TargetPeer]
    sessions: Sessions
    handshakes: Handshakes
    notifications: Notifications
    metadata: dict[str, Calls]
    security: Security
    staging: list[Staging]
    process: Process


def read(functions: Functions, handle: int) -> Stats | None:
    """Describe an engine; None when the library cannot, and then its last error says why."""
    room = _ROOM
    while True:
        text = create_string_buffer(room)
        length = functions.kvferry_stats_json(handle, text, room)
        if length < 0:
            return None
        if length < room:
            return cast("Stats", json.loads(text.value))
        room = 2 * length
