"""What a rate means, from what was measured: each cause by itself, and none where nothing limits."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from kvferry._command.diagnosis import Measured, diagnose
from kvferry._command.rates import Rate
from kvferry.stats import Flow

GB = 10**9
FLOW: Flow = {
    "connections": 4,
    "round_trip_seconds": 0.0003,
    "min_round_trip_seconds": 0.0002,
    "congestion_window_bytes": 4 << 20,
    "peer_window_bytes": 12 << 20,
    "segment_bytes": 1448,
    "delivery_bytes_per_second": GB,
    "sent_bytes": GB,
    "retransmitted_bytes": 0,
    "received_bytes": GB,
    "received_segments": GB // 1448,
    "out_of_order_segments": 0,
    "busy_seconds": 4.0,
    "peer_limited_seconds": 0.0,
    "send_buffer_limited_seconds": 0.0,
}
RATE = Rate("write", 1.0, GB, 4, "tcp", FLOW, 0.5, 0.2, 0.1)


def rate(direction: str = "write", bytes: int = GB, connections: int = 4, **changed: Any) -> Rate:
    flow: Any = {**FLOW, **{name: value for name, value in changed.items() if name in FLOW}}
    rest = {name: value for name, value in changed.items() if name not in FLOW}
    return RATE._replace(direction=direction, bytes=bytes, connections=connections, flow=flow, **rest)


def wrong(usual: Rate, several: Optional[Rate] = None, expected: Optional[float] = None) -> list[str]:
    findings = diagnose(Measured(usual, rate(connections=1), several, expected))
    return [finding.subject for finding in findings if finding.severity in ("warning", "error")]


@pytest.mark.parametrize("direction", ["write", "read"])
def test_a_good_rate_has_nothing_wrong(direction: str) -> None:
    assert wrong(rate(direction)) == wrong(rate(direction), expected=1.5 * GB) == []
    assert wrong(rate(direction), several=rate(direction, bytes=int(1.1 * GB))) == []


def test_more_connections_that_are_faster_are_named() -> None:
    assert wrong(rate(connections=1), several=rate(bytes=2 * GB)) == ["lanes"]


def test_loss_is_seen_in_either_direction() -> None:
    assert wrong(rate(retransmitted_bytes=GB // 100)) == ["loss"]
    assert wrong(rate("read", out_of_order_segments=GB // 1448 // 100)) == ["loss"]
    assert wrong(rate(retransmitted_bytes=1448)) == [], "a single lost segment says nothing"


def test_a_receive_window_that_is_full_is_named_only_if_the_round_trip_fills_it() -> None:
    full: dict[str, Any] = {"peer_window_bytes": 256 << 10, "round_trip_seconds": 0.05, "peer_limited_seconds": 3.0}
    assert wrong(rate(bytes=20_000_000, **full)) == ["window"]
    assert wrong(rate(peer_limited_seconds=3.0)) == [], "the peer is slow, and its window is large"


def test_a_send_buffer_that_is_full_is_named_over_a_long_way_only() -> None:
    assert wrong(rate(send_buffer_limited_seconds=2.0, min_round_trip_seconds=0.02)) == ["window"]
    assert wrong(rate(send_buffer_limited_seconds=2.0)) == []


def test_processors_that_others_keep_busy_are_named_unless_the_rate_is_good() -> None:
    busy = rate(load=1.0, others=0.8, starved=2.0)
    assert wrong(busy) == wrong(busy, expected=10 * GB) == ["processors"]
    assert wrong(busy, expected=GB) == []


@pytest.mark.parametrize(
    ("changed", "subject"),
    [
        ({"round_trip_seconds": 0.05}, "slow link"),
        ({"load": 1.0}, "processors"),
        ({"peer_limited_seconds": 3.0}, "peer"),
        ({}, "slow link"),
    ],
)
def test_a_rate_below_what_can_be_expected_has_a_cause(changed: dict[str, Any], subject: str) -> None:
    assert wrong(rate(**changed), expected=10 * GB) == [subject]


def test_a_queue_is_named_beside_busy_processors() -> None:
    slow = rate(load=1.0, others=0.9, starved=1.0, round_trip_seconds=0.3)
    assert wrong(slow, expected=10 * GB) == ["processors", "slow link"]


@pytest.mark.parametrize("direction", ["write", "read"])
def test_a_peer_on_this_host_has_no_link_and_no_connections(direction: str) -> None:
    here = rate(direction, connections=0, path="host")
    (finding,) = diagnose(Measured(here, rate(connections=1), None, 100 * GB))
    assert (finding.severity, finding.subject) == ("info", "limit")
    assert f"{direction.upper()} reaches 1.00 GB/s" in finding.found and "connections" not in finding.found
