"""Probes find out what is so, on this machine and in namespaces where it is otherwise."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kvferry import simulator
from kvferry._probes import (
    addresses,
    clocks,
    connecting,
    devices,
    ports,
    processors,
    samehost,
    software,
    tcp,
)
from support import network
from support.inprocess import environment

LIMIT = 30.0


@pytest.fixture(scope="module")
def namespace() -> Iterator[network.Network]:
    with network.made() as made:
        yield made


def ask(namespace: network.Network, set_up: str, expression: str) -> Any:
    """The value of an expression about probes, in a namespace, after shell commands."""
    program = (
        "import json\nfrom kvferry._probes import addresses, connecting, limits, ports, samehost, tcp\n"
        f"print(json.dumps({expression}))"
    )
    command = [*namespace.enter, "sh", "-c", f'{set_up} && exec "$0" -c "$1"', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_addresses_are_those_of_the_interfaces_that_are_up(namespace: network.Network) -> None:
    found = ask(namespace, "true", "addresses.addresses()")
    assert ["lo", network.NEAR] in found and ["lo", network.FAR] in found


def test_other_machines_reach_neither_loopback_nor_link_local_addresses() -> None:
    for text, reachable in (("127.0.0.1", False), ("::1", False), ("fe80::1", False), ("10.0.0.1", True)):
        assert addresses.Address("x", text).reachable is reachable


def test_the_interface_to_a_destination_is_found_by_its_address(namespace: network.Network) -> None:
    assert ask(namespace, "true", f"addresses.source_address('{network.FAR}')") in (network.NEAR, network.FAR)
    assert ask(namespace, "true", f"addresses.interface_of('{network.FAR}')") == "lo"
    assert ask(namespace, "true", "addresses.source_address('203.0.113.1')") is None, "there is no route"


def test_an_interface_without_hardware_has_no_speed() -> None:
    loopback = addresses.interface("lo")
    assert loopback.virtual and loopback.up and loopback.speed is None and loopback.mtu
    assert addresses.interface("nothing").mtu is None


def test_a_port_that_is_taken_is_not_free() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(1)
        port = s.getsockname()[1]
        assert not ports.is_free(port)
        assert ports.ports(port, port).free == 0


def test_some_free_ports_of_a_large_range_are_enough() -> None:
    assert ports.ports(15000, 17000).free == ports.ENOUGH


def test_settings_of_tcp_are_those_of_the_namespace(namespace: network.Network) -> None:
    folder = "/proc/sys/net/ipv4"
    set_up = f"echo '4096 8192 16384' > {folder}/tcp_rmem && echo 0 > {folder}/tcp_sack"
    found = tcp.Tcp(*ask(namespace, set_up, "tcp.tcp()"))
    assert (found.receive_buffer, found.selective_acks, found.window_scaling) == (16384, False, True)
    assert found.congestion


def check_descriptors(program: str) -> None:
    """Run a program in a process whose descriptors are its own: here engines of other tests have some."""
    begin = "import os, resource\nfrom kvferry._probes import limits\n"
    done = subprocess.run([sys.executable, "-c", begin + program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_limits_of_descriptors_are_those_of_the_process() -> None:
    check_descriptors("""
before = limits.limits()
assert before.max_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
with open(os.devnull), open(os.devnull):
    assert limits.open_files() == before.open_files + 2
""")


def test_open_descriptors_are_counted_where_none_is_left() -> None:
    check_descriptors("""
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, 4096))
assert limits.open_files() == max(held) + 1, limits.open_files()
""")


def test_a_child_can_read_this_process_where_the_system_allows_it() -> None:
    found = samehost.same_host()
    if os.geteuid() == 0:
        assert found.readable and not found.problem
    else:
        assert found.readable or found.problem


# Installs a filter that lets process_vm_readv fail with EPERM, as container runtimes do.
FILTERED = """
import ctypes, json, platform, struct
number = {"x86_64": 310, "aarch64": 270}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *one) for one in code)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(code), program))) == 0
from kvferry._probes import samehost
print(json.dumps(samehost.same_host()))
"""


def test_a_filter_of_system_calls_is_seen_by_the_probe() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILTERED], env=environment(), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    found = samehost.SameHost(*json.loads(done.stdout))
    assert not found.readable and found.problem == "Operation not permitted" and found.seccomp == 2


def test_connecting_tells_refusal_from_silence(namespace: network.Network) -> None:
    refused = connecting.connect("127.0.0.1", 1, 5)
    assert refused.refused and not refused.silent and refused.problem
    absent = (
        "ip link add v0 type veth peer name v1 && ip addr add 10.99.0.1/24 dev v0 && ip link set v0 up &&"
        " ip link set v1 up && ip neigh add 10.99.0.2 lladdr 02:00:00:00:00:01 dev v0"
    )
    silent = connecting.Connected(*ask(namespace, absent, "connecting.connect('10.99.0.2', 7, 0.2)"))
    assert silent.silent and silent.problem and not silent.refused and silent.round_trip is None


def test_a_connection_shows_its_round_trip_and_the_mtu_of_its_path() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        found = connecting.connect("127.0.0.1", listener.getsockname()[1], 5)
    assert found.problem == "" and found.round_trip is not None and 0 < found.round_trip < 5
    largest = 65535  # bytes of an IPv4 packet
    assert found.path_mtu == min(addresses.interface("lo").mtu or 0, largest)
    assert found.segment


def test_a_name_leads_to_its_addresses_and_an_unknown_one_to_a_reason() -> None:
    assert "127.0.0.1" in connecting.resolve("localhost").addresses
    assert connecting.resolve("10.0.0.1").addresses == ("10.0.0.1",)
    unknown = connecting.resolve("no-such-host.invalid")
    assert unknown.addresses == () and unknown.problem


def test_a_link_local_address_keeps_its_interface(namespace: network.Network) -> None:
    """The engine finds such a peer by its name, and so does the command."""
    linked = "ip -6 addr add fe80::7/64 dev lo nodad"
    both = "[connecting.resolve('fe80::7%lo').addresses, addresses.source_address('fe80::7%lo')]"
    assert ask(namespace, linked, both) == [["fe80::7%lo"], "fe80::7%lo"]
    refused = connecting.Connected(*ask(namespace, "true", "connecting.connect('fe80::7%lo', 1, 5)"))
    assert refused.refused, refused


def test_simulated_devices_are_found_and_their_copies_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ASCENDCL", simulator.library("npu"))
    monkeypatch.setenv("KVFERRY_CUDA", "/nonexistent.so")
    npus, gpus = devices.kinds()
    assert (npus.kind, npus.simulated, npus.problem) == ("npu", True, "") and npus.number > 0
    assert gpus.number == 0 and "/nonexistent.so" in gpus.problem
    found = devices.copies("npu", 0)
    assert found.problem == "" and found.out > 0 and found.into > 0
    assert devices.copies("cuda", 0).problem


def test_times_tell_own_work_from_that_of_others() -> None:
    before = processors.times()
    end = before.wall + 0.3
    while processors.times().wall < end:
        sum(range(10_000))
    passed = processors.times().since(before)
    assert passed.own > 0 and 0 < passed.load <= 1 and 0 <= passed.others <= passed.load
    assert set(processors.processors().allowed) == os.sched_getaffinity(0)


def test_the_software_is_that_of_this_interpreter() -> None:
    found = software.software()
    assert found.library and found.library_version == found.kvferry and not found.library_problem
    assert found.engine_is_kvferry and found.c_library.startswith("glibc")


def test_the_clock_is_described_where_the_kernel_tells() -> None:
    found = clocks.clock()
    assert found is None or found.error >= 0
