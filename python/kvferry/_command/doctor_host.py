"""What the doctor says of this machine, without a peer."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import stat
from collections.abc import Iterator

from kvferry import gpu, npu
from kvferry._command import settings
from kvferry._command.doctor_engine import of_start
from kvferry._command.doctor_outputs import of_outputs
from kvferry._command.findings import Finding, error, info, ok, warning
from kvferry._command.settings import Settings, value
from kvferry._places import size_text
from kvferry._probes import addresses, clocks, connecting, devices, limits, ports, processors, samehost, software, tcp

GB = 1e9
FEW_FILES = 4096  # a quarter of the limit is for connections from peers, and a quarter for those to peers
FILES_EACH = 8  # of the limit: a connection from a peer takes up to two of that quarter
SPARE_FILES = 64
SPARE_PIDS = 128  # an engine's threads, and those of the application's next processes
USUAL_SPEED = 10_000_000_000  # bits per second, where the hardware does not tell
FAR = 1e-3  # seconds: a round trip between two rooms of a data centre
SLOW_COPIES = 1 * GB  # bytes per second: less than the slowest slot for a card gives
JUMBO = 4000  # bytes of an MTU from which on packets cost few processor cycles
VARIABLES = {"npu": npu.VARIABLE, "cuda": gpu.VARIABLE}  # by kind of device: the setting that names its library
OTHERS = 0o066  # permissions of other users to read and write
SECRETS = ("KVFERRY_SECRET_FILE", "KVFERRY_TLS_KEY", "KVFERRY_METADATA_KEY")  # settings that name files with secrets
FAST = 25_000_000_000  # bits per second from which on that matters


def examine(arguments: argparse.Namespace, found: Settings) -> Iterator[Finding]:
    """All checks of this machine. arguments has metadata and name, and found are the settings in effect."""
    yield from of_software(software.software())
    yield from of_settings(found)
    yield from of_addresses(addresses.addresses())
    yield from of_ports(ports.ports(*port_range(found)))
    yield from of_limits(limits.limits())
    yield from of_start(arguments)
    yield from of_outputs(found)
    yield from of_secrets({name: value(found, name) for name in SECRETS})
    yield from of_same_host(samehost.same_host())
    here = processors.processors()
    for interface in interfaces():
        yield from of_interface(interface, here)
    yield from of_tcp(tcp.tcp(), fastest(interfaces()), found)
    yield from of_processors(here)
    for kind in devices.kinds():
        yield from of_devices(kind, value(found, VARIABLES[kind.kind]))
    yield from of_staging(found)
    yield from of_clock(clocks.clock(), bool(value(found, "KVFERRY_TLS_CERT")))


def interfaces() -> list[addresses.Interface]:
    """The interfaces with addresses that peers may reach."""
    names = dict.fromkeys(address.interface for address in addresses.addresses() if address.reachable)
    return [addresses.interface(name) for name in names]


def fastest(all_interfaces: list[addresses.Interface]) -> int:
    """The speed of the fastest of them in bits per second, as far as it is known."""
    return max((interface.speed or 0 for interface in all_interfaces), default=0) or USUAL_SPEED


def port_range(found: Settings) -> tuple[int, int]:
    """The range of ports from which engines pick theirs."""
    first = value(found, "MC_MIN_RPC_PORT", "MC_MIN_PRC_PORT")
    last = value(found, "MC_MAX_RPC_PORT", "MC_MAX_PRC_PORT")
    return int(first), int(last)


def of_software(about: software.Software) -> Iterator[Finding]:
    """The library, and which mooncake.engine wins."""
    if about.library_problem:
        yield error(
            "library", f"the native library cannot be used: {about.library_problem}", "Install the wheel again."
        )
    elif about.library_version != about.kvferry:
        yield warning(
            "library",
            f"the package is version {about.kvferry}, and the library {about.library} is {about.library_version}",
            "Install both from one wheel, and unset KVFERRY_LIBRARY.",
        )
    if not about.engine_is_kvferry:
        yield warning(
            "mooncake.engine",
            f"programs import {about.engine or 'no mooncake.engine'}, which is not kvferry's",
            "Import kvferry before mooncake.engine, or install kvferry into the same environment.",
        )
    if about.mooncake:
        names = ", ".join(f"{name} {version}" for name, version in about.mooncake)
        yield info(
            "mooncake", f"{names} is installed beside kvferry, whose mooncake.engine is the one that is imported"
        )
    yield ok("software", f"kvferry {about.kvferry}, {about.kernel}, {about.c_library}")


def of_settings(found: Settings) -> Iterator[Finding]:
    """Settings that have no effect."""
    for setting in found["settings"]:
        if setting["problem"]:
            yield warning(
                "settings",
                f"{setting['name']} is ignored: {setting['problem']}; the default {setting['default']!r} is used",
                "Set it to a value that docs/configuration.md lists, or unset it.",
            )
    for unknown in found["unknown"]:
        meant = f": did you mean {unknown['nearest']}?" if unknown["nearest"] else ""
        if unknown["own"]:
            yield warning(
                "settings", f"{unknown['name']} is no setting and has no effect{meant}", "Unset or rename it."
            )
        elif meant:
            yield warning("settings", f"{unknown['name']} is not read by kvferry{meant}", "Rename it if it was meant.")


def of_addresses(all_addresses: list[addresses.Address]) -> Iterator[Finding]:
    """Whether peers can reach this machine, by an address or by its name."""
    reachable = [address for address in all_addresses if address.reachable]
    if not reachable:
        yield error(
            "addresses",
            "no interface is up that has an address which other machines can reach",
            "Bring the interface up, or give the container a network.",
        )
        return
    yield ok("addresses", ", ".join(f"{address.text} on {address.interface}" for address in reachable))
    name = socket.gethostname()
    resolved = connecting.resolve(name)
    if resolved.problem:
        yield info("name", f"this machine's name {name} leads to no address: {resolved.problem}", "Use addresses.")
    elif not any(addresses.Address("", text).reachable for text in resolved.addresses):
        yield info(
            "name",
            f"this machine's name {name} leads to {', '.join(resolved.addresses)}, which only this machine reaches",
            "Give engines an address as their name, or correct /etc/hosts.",
        )


def of_ports(found: ports.Ports) -> Iterator[Finding]:
    """Whether an engine finds ports."""
    needed = 2
    where = f"{found.first} to {found.last}"
    if found.free < needed:
        yield error(
            "ports",
            f"{found.free} of the ports {where} are free, and an engine takes {needed}",
            "Widen MC_MIN_RPC_PORT and MC_MAX_RPC_PORT, or end what uses the ports.",
        )
    else:
        yield ok("ports", f"there are free ports from {where}")


def of_limits(found: limits.Limits) -> Iterator[Finding]:
    """Descriptors, threads, locked memory."""
    yield from of_descriptors(found)
    if found.pids is not None and found.pids - (found.pids_in_use or 0) < SPARE_PIDS:
        yield warning(
            "threads",
            f"{found.pids_in_use} of the {found.pids} processes and threads that the container may have exist",
            "Raise the container's pids limit.",
        )
    if found.locked_memory is not None:
        yield info(
            "locked memory",
            f"processes may lock {size_text(found.locked_memory)}; only drivers of devices lock memory",
        )


def of_descriptors(found: limits.Limits) -> Iterator[Finding]:
    """File descriptors of this process."""
    most = found.max_files
    if most is not None and most - found.open_files < SPARE_FILES:
        yield error(
            "descriptors",
            f"{found.open_files} of {most} file descriptors are in use, and engines need {SPARE_FILES} at least",
            f"Raise the limit of open files (ulimit -n) to {FEW_FILES} or more.",
        )
    elif most is not None and most < FEW_FILES:
        yield warning(
            "descriptors",
            f"the limit of open files is {most}: engines accept {most // FILES_EACH} data connections at most",
            f"Raise the limit of open files (ulimit -n) to {FEW_FILES} or more.",
        )
    else:
        yield ok("descriptors", f"the limit of open files is {most or 'none'}")


def of_secrets(files: dict[str, str]) -> Iterator[Finding]:
    """Files with secrets, by setting; "" where none is named."""
    for name, file in files.items():
        with contextlib.suppress(OSError):  # an engine that cannot read it does not start, and says so
            mode = os.stat(file).st_mode if file else 0
            if stat.S_ISREG(mode) and mode & OTHERS:
                found = f"the permissions of {file} ({name}) let other users of this machine read or change it"
                yield warning("security", found, f"chmod 600 {file}")


def of_same_host(found: samehost.SameHost) -> Iterator[Finding]:
    """Whether engines of this host can copy from each other's memory."""
    if found.readable:
        yield ok("same host", "processes of this user can read each other's memory")
    elif found.ptrace_scope:
        yield warning(
            "yama",
            f"processes may not read each other's memory (kernel.yama.ptrace_scope is {found.ptrace_scope}):"
            " engines of this host use sockets, which is slower",
            "Set kernel.yama.ptrace_scope to 0, or give the containers the capability SYS_PTRACE.",
        )
    else:
        by = " by a filter of system calls (seccomp)" if found.seccomp else ""
        yield warning(
            "same host",
            f"processes may not read each other's memory{by}: {found.problem}. Engines of this host use sockets,"
            " which is slower",
            "Allow process_vm_readv in the container's seccomp profile, or give it the capability SYS_PTRACE.",
        )


def of_interface(interface: addresses.Interface, here: processors.Processors) -> Iterator[Finding]:
    """Speed, MTU, interrupts, memory node."""
    name = interface.name
    speed = "unknown speed" if interface.speed is None else f"{interface.speed / 1e9:g} Gbit/s"
    yield ok("interface", f"{name}: {speed}, MTU {interface.mtu}, driver {interface.driver or 'none'}")
    fast = (interface.speed or 0) >= FAST
    if fast and (interface.mtu or JUMBO) < JUMBO:
        yield info(
            "mtu",
            f"{name} has an MTU of {interface.mtu} at {speed}, which costs processor time",
            "Use an MTU of 9000 if every switch on the way allows it.",
        )
    if fast and interface.queues == 1 and here.online > 1:
        yield warning(
            "interrupts",
            f"{name} has one receive queue: one processor handles all of its packets",
            f"Give it more queues (ethtool -L {name} combined {min(here.online, 16)}).",
        )
    if interface.numa_node is not None and len(here.nodes) > 1:
        yield info("numa", f"{name} is at memory node {interface.numa_node} of {len(here.nodes)}")


def of_tcp(found: tcp.Tcp, speed: int, settings_found: Settings) -> Iterator[Finding]:
    """Whether TCP's windows can fill the fastest interface over a round trip of a millisecond."""
    lanes = lanes_of(settings_found) or 4
    needed = int(speed / 8 * FAR / lanes)
    for name, size in (("tcp_rmem", found.receive_buffer), ("tcp_wmem", found.send_buffer)):
        # The kernel counts its own structures, too: about half of a buffer is for bytes.
        if size is not None and size // 2 < needed:
            yield warning(
                "window",
                f"net.ipv4.{name} lets a connection have {size} bytes, and {speed / 1e9:g} Gbit/s over a round trip of"
                f" {FAR * 1e3:g} ms with {lanes} connections take {2 * needed}",
                f"Set the last number of net.ipv4.{name} to {2 * needed} or more, on both machines.",
            )
    if found.window_scaling is False:
        yield warning("window", "net.ipv4.tcp_window_scaling is off: windows end at 64 KiB", "Set it to 1.")
    if found.selective_acks is False:
        yield warning("loss", "net.ipv4.tcp_sack is off: a lost packet costs many", "Set it to 1.")
    wanted = value(settings_found, "KVFERRY_TCP_CONGESTION")
    if wanted and wanted not in found.allowed_congestion:
        yield warning(
            "congestion",
            f"KVFERRY_TCP_CONGESTION is {wanted}, which is not allowed here: {found.congestion} is used",
            f"Add it to net.ipv4.tcp_allowed_congestion_control, or choose of {', '.join(found.allowed_congestion)}.",
        )
    yield ok("congestion", f"congestion control is {wanted or found.congestion}")


def lanes_of(found: Settings) -> int | None:
    """The number of connections to a peer, where it is set; 0 where each request has one of its own."""
    if value(found, "MC_TCP_ENABLE_CONNECTION_POOL").lower() in ("0", "false", "no", "off"):
        return 0
    set_to = value(found, "MC_TCP_LANES_PER_PEER", "MC_TCP_MAX_CONNECTIONS_PER_PEER")
    return int(set_to) if set_to.isdecimal() else None


def of_processors(here: processors.Processors) -> Iterator[Finding]:
    """Whether there are enough for a transfer."""
    usable = min(len(here.allowed), here.quota or len(here.allowed))
    if usable < 2:
        yield warning(
            "processors",
            f"this process may use {usable:g} of {here.online} processors: transfers and the application share them",
            "Allow two processors or more (the container's limit, taskset, cpuset).",
        )
    else:
        yield ok("processors", f"this process may use {usable:g} of {here.online} processors")


def of_devices(kind: devices.Kind, library: str = "") -> Iterator[Finding]:
    """Drivers, and how fast each device copies. library is the file that a setting names, if one does."""
    name = {"npu": "NPU", "cuda": "GPU"}[kind.kind]
    if kind.problem and library:
        yield warning(
            "devices",
            f"{VARIABLES[kind.kind]} names {library}, which gives no {name}: {kind.problem}",
            "Correct it, or unset it: kvferry then searches for the library.",
        )
        return
    if kind.problem:
        yield info("devices", f"there is no {name} here: {kind.problem}")
        return
    simulated = "simulated " if kind.simulated else ""
    yield ok("devices", f"{kind.number} {simulated}{name}s, by {kind.library}")
    for number in range(kind.number):
        yield from of_copies(devices.copies(kind.kind, number))


def of_copies(found: devices.Copies) -> Iterator[Finding]:
    """Whether copies of a device are as fast as they can be expected to be."""
    rates = f"{found.out / GB:.2f} GB/s out and {found.into / GB:.2f} GB/s in"
    if found.problem:
        yield error("devices", f"{found.device} cannot be used: {found.problem}", "Look at the driver's own diagnosis.")
    elif min(found.out, found.into) < SLOW_COPIES:
        yield warning(
            "slow device",
            f"copies of {found.device} to page-locked memory give {rates}: they limit its transfers",
            "Look at the slot's width and generation, at the memory node of the process, and at what else uses the"
            " device.",
        )
    else:
        yield ok("devices", f"{found.device} copies {rates}")


def of_staging(found: Settings) -> Iterator[Finding]:
    """Whether the pool of staging blocks has room for copies and sending at the same time."""
    block = int(value(found, "KVFERRY_STAGING_BLOCK_SIZE"))
    blocks = int(value(found, "KVFERRY_STAGING_POOL_SIZE")) // 2 // block
    few = 4
    if blocks < few:
        yield warning(
            "staging",
            f"the staging pool has {blocks} blocks in each direction: copies and the network wait for each other",
            f"Set KVFERRY_STAGING_POOL_SIZE to {2 * few * block} or more.",
        )
    chosen = value(found, "KVFERRY_DEVICE_COPY")
    if chosen != "auto":
        yield info("staging", f"KVFERRY_DEVICE_COPY is {chosen}: the engine measures no device to choose how to copy")


def of_clock(found: clocks.Clock | None, certificates: bool) -> Iterator[Finding]:
    """Certificates are the only thing that depends on it."""
    if found is None or found.synchronised:
        return
    text = "this machine's clock is not synchronised"
    if certificates:
        yield warning("clock", f"{text}, and certificates are valid by it", "Run chrony or systemd-timesyncd.")
    else:
        yield info("clock", f"{text}: times in logs of several machines do not fit together")


def read_settings() -> Settings:
    """The settings in effect."""
    return settings.read()
