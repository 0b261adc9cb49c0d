"""The doctor names what is wrong between two hosts, and says that nothing is where nothing is."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from doctor.hosts import EXPECTED, THERE, joined

HEALTHY_RUNS = int(os.environ.get("KVFERRY_TEST_HEALTHY_RUNS", "3"))
SECONDS = ("--seconds", "0.5")
FAST = "10G"  # bits per second: more than a link that a program makes


@pytest.mark.parametrize("run", range(HEALTHY_RUNS))
def test_a_healthy_pair_has_nothing_wrong(run: int, link_program: Path) -> None:
    with joined(link_program) as hosts, hosts.serving() as name:
        report = hosts.doctor(name, *SECONDS, "--expect", EXPECTED)
    assert report.wrong() == set(), report.findings
    assert report.status == 0
    assert {"name", "handshake port", "identity", "data port", "transfer", "rate"} <= report.of("ok")
    for direction in ("write", "read"):
        assert report.measured[direction]["usual"]["bytes"] > 0
        assert report.measured[direction]["one"]["connections"] == 1


def test_a_slow_link_is_named(link_program: Path) -> None:
    with joined(link_program, megabits=50) as hosts, hosts.serving() as name:
        report = hosts.doctor(name, *SECONDS, "--expect", "1G")
    assert "slow link" in report.wrong(), report.findings


def test_loss_is_named(link_program: Path) -> None:
    with joined(link_program, lose_one_in=30) as hosts, hosts.serving() as name:
        report = hosts.doctor(name, *SECONDS, "--expect", EXPECTED)
    assert "loss" in report.wrong(), report.findings


def test_a_small_window_is_named(link_program: Path) -> None:
    with joined(link_program, microseconds=5000) as hosts:
        hosts.limit_windows(hosts.link.there, 65536)
        with hosts.serving() as name:
            report = hosts.doctor(name, *SECONDS, "--expect", EXPECTED)
        hosts.limit_windows(hosts.link.here, 65536)
        assert "window" in hosts.doctor().wrong()
    found = [finding for finding in report.findings if finding["subject"] == "window"]
    assert found and "tcp_rmem on the peer" in found[0]["advice"], report.findings


def test_a_single_lane_is_named_where_more_are_faster(link_program: Path) -> None:
    with joined(link_program, microseconds=5000) as hosts:
        for keeper in (hosts.link.here, hosts.link.there):  # a connection by itself is slow, whatever the reason
            hosts.limit_windows(keeper, 32768)
        with hosts.serving() as name:
            report = hosts.doctor(name, *SECONDS, MC_TCP_LANES_PER_PEER="1")
    assert "lanes" in report.wrong(), report.findings


def test_a_busy_processor_is_named(link_program: Path) -> None:
    pinned = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    spin = [*pinned, sys.executable, "-c", "while True: pass"]
    spinners = [subprocess.Popen(spin) for _ in range(3)]
    try:
        with joined(link_program) as hosts, hosts.serving() as name:
            report = hosts.doctor(name, *SECONDS, before=pinned, MC_LOG_LEVEL="ERROR")
            here = hosts.doctor(before=pinned)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert "processors" in report.wrong(), report.findings
    assert "processors" in here.wrong(), "it may use one processor"


@pytest.mark.parametrize("secure", [False, True])
def test_a_way_that_loses_large_packets_without_a_word_is_named(
    secure: bool, link_program: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32) + "\n")
    settings = {"KVFERRY_SECRET_FILE": str(secret)} if secure else {}
    with joined(link_program) as hosts:
        for keeper in (hosts.link.here, hosts.link.there):
            hosts.set_mtu(keeper, 1500)
        with hosts.serving(**settings) as name:
            passing = hosts.doctor(name, *SECONDS, **settings)
            hosts.link.lose_longer(1300 if secure else 1420)
            report = hosts.doctor(name, *SECONDS, **settings)
    assert "packet size" not in passing.wrong(), passing.findings
    assert "packet size" in report.of("error") and report.status == 1, report.findings
    if not secure:
        assert passing.measured["packets"] == {"passes": 1500, "lost": None}
        assert report.measured["packets"] == {"passes": 1400, "lost": 1450}
        assert report.of("error") == {"packet size"}, "it comes before what cannot succeed"


def test_a_wrong_published_address_is_named(link_program: Path) -> None:
    """The peer takes itself for another host, and is reached at the address that its ports listen on."""
    with joined(link_program) as hosts, hosts.serving("--name", "10.77.0.77", KVFERRY_LISTEN=THERE) as name:
        report = hosts.doctor(f"{THERE}:{name.rpartition(':')[2]}", *SECONDS, "--expect", EXPECTED)
    assert "published address" in report.wrong(), report.findings
    (found,) = (finding for finding in report.findings if finding["subject"] == "published address")
    assert "10.77.0.77" in found["found"] and THERE in found["found"]


def test_a_blocked_data_port_is_named(link_program: Path) -> None:
    with joined(link_program) as hosts, hosts.serving() as name:
        handshake = int(name.rpartition(":")[2])
        data = 16001 + 16002 - handshake
        hosts.link.close_port(data)
        report = hosts.doctor(name, *SECONDS)
    assert report.of("error") == {"data port"} and report.status == 1, report.findings
    assert str(data) in next(finding["found"] for finding in report.findings if finding["subject"] == "data port")


def test_a_blocked_handshake_port_and_one_at_which_nobody_listens_are_told_apart(link_program: Path) -> None:
    with joined(link_program) as hosts:
        refused = hosts.doctor(f"{THERE}:16001")
        hosts.link.close_port(16001)
        silent = hosts.doctor(f"{THERE}:16001")
    assert refused.of("error") == silent.of("error") == {"handshake port"}
    assert "nobody listens" in refused.findings[-1]["found"]
    assert "cannot be reached" in silent.findings[-1]["found"]


def test_descriptors_that_are_used_up_are_named(link_program: Path) -> None:
    with joined(link_program) as hosts, hosts.serving() as name:
        report = hosts.doctor(name, before=("prlimit", "--nofile=14:14"))
    assert report.of("error") == {"descriptors"} and report.status == 1, report.findings


def test_an_engine_that_cannot_be_made_is_a_finding(link_program: Path) -> None:
    with joined(link_program) as hosts, hosts.serving() as name:
        report = hosts.doctor(name, KVFERRY_SECRET_FILE="/nonexistent")
    assert report.of("error") == {"engine"}, report.findings
    (error,) = (f for f in report.findings if f["severity"] == "error")
    assert "/nonexistent" in error["found"]


def test_a_peer_with_another_secret_is_named(link_program: Path, tmp_path: Path) -> None:
    files = [tmp_path / "here", tmp_path / "there"]
    for file in files:
        file.touch(0o600)
        file.write_text(secrets.token_hex(32) + "\n")
    with joined(link_program) as hosts, hosts.serving(KVFERRY_SECRET_FILE=str(files[1])) as name:
        report = hosts.doctor(name, KVFERRY_SECRET_FILE=str(files[0]))
        without = hosts.doctor(name)
        right = hosts.doctor(name, *SECONDS, "--expect", EXPECTED, KVFERRY_SECRET_FILE=str(files[1]))
    assert report.of("error") == {"security"} and report.status == 1, report.findings
    assert without.of("error") == {"security"}, without.findings
    assert right.wrong() == set(), right.findings
