"""Engines of the command: the options by which they are made, and their errors as the command's."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kvferry._command.declaration import CommandError, Option, option
from kvferry._command.output import Output
from kvferry._engine import DEFAULT_TIMEOUT, Engine
from kvferry._errors import EngineError
from kvferry._library import LibraryError
from kvferry._probes.addresses import text_of
from kvferry._texts import DescribeError, Description

P2P = "P2PHANDSHAKE"
LAST_PORT = 65535

METADATA = option(
    "--metadata",
    metavar="STORE",
    default=P2P,
    help="metadata store of the cluster, as etcd://10.0.0.9:2379; names are addresses without one (%(default)s)",
)
NAME = option(
    "--name",
    metavar="NAME",
    help="name of this engine: with a store any name, otherwise an address of this machine that the peer reaches"
    " (found out by the machine's routes)",
)
ENGINE: tuple[Option, ...] = (METADATA, NAME)


def quiet_engine(out: Output) -> None:
    """Have engines log errors only, unless the user wants more: the command says itself what has failed."""
    if not out.verbose:
        os.environ.setdefault("MC_LOG_LEVEL", "ERROR")


@contextmanager
def engine(arguments: argparse.Namespace, towards: str | None = None, memory: object = None) -> Iterator[Engine]:
    """An engine as these options say, which ends with the block.

    towards is the peer that it is for, host:port. memory is kept until the engine has ended. CommandError says why
    there is none.
    """
    name = arguments.name or own_name(arguments.metadata, towards)
    try:
        made = Engine(name, arguments.metadata, "tcp", memory)
    except (EngineError, LibraryError, ValueError) as e:
        raise CommandError(f"no engine can be made: {e}") from e
    with made:
        yield made


def own_name(metadata: str, towards: str | None) -> str:
    """The name of an engine where none was given; with a store, which takes each name once, a random one."""
    if metadata != P2P:
        return f"kvferry-{socket.gethostname()}-{secrets.token_hex(4)}"
    return own_address(towards)


# Addresses of networks for documentation: nobody has them, and they lead to the route for everything.
ELSEWHERE = ("192.0.2.1", "2001:db8::1")


def own_address(towards: str | None) -> str:
    """The address of this machine from which packets to a peer come; without a peer, from which they leave."""
    for host in (split(towards)[0],) if towards else ELSEWHERE:
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM):
                with socket.socket(family, kind, protocol) as s:
                    s.connect(address)  # it sends nothing
                    return text_of(s.getsockname())
        except (OSError, UnicodeError):  # the second one for what cannot be the name of a host
            continue
    return "127.0.0.1"


def split(peer: str) -> tuple[str, int | None]:
    """The host and the port of a peer's name, as engines read it (core/address): host, host:port or host:port:npu_N.

    An IPv6 address may be without brackets. The port is None in a name without one, and in what is no name.
    """
    name = re.sub(r":npu_[0-9]+$", "", peer)
    if brackets := re.fullmatch(r"\[([^]]*)\](?::([0-9]{1,5}))?", name):
        host, port = brackets.groups()
    else:
        host, _, port = name.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or _is_ipv6(name) or (":" in host and not _is_ipv6(host)):
            return name, None
    if port is None:
        return host, None
    return (host, int(port)) if int(port) <= LAST_PORT else (name, None)


def _is_ipv6(text: str) -> bool:
    address, _, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return ":" not in scope


def describe(engine: Engine, peer: str, timeout: float = DEFAULT_TIMEOUT) -> Description:
    """What a peer offers. CommandError where it does not answer."""
    try:
        return engine.describe(peer, timeout)
    except (DescribeError, ValueError) as e:
        raise CommandError(f"{peer} cannot be asked what it offers: {e}") from e


def open_peer(engine: Engine, peer: str, timeout: float = DEFAULT_TIMEOUT) -> int:
    """The id of a peer's segment. CommandError where it cannot be had."""
    segment = engine.segment(peer, timeout)
    if segment < 0:
        raise CommandError(f"{peer} cannot be opened: {engine.last_error()}")
    return segment
