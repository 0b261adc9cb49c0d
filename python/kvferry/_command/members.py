"""kvferry ls STORE and kvferry rm STORE NAME: the engines that a metadata store knows."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone

from kvferry import _texts
from kvferry._command import status
from kvferry._command.declaration import Command, CommandError, Example, option
from kvferry._command.output import Output
from kvferry._command.texts import age, memory_text
from kvferry._library import LibraryError
from kvferry._options import seconds
from kvferry._texts import DescribeError, Member

REACHABLE = "reachable"
STORE = option(
    "store",
    metavar="STORE",
    help="the connection string that engines are initialized with, such as etcd://10.0.0.9:2379, redis://10.0.0.9:6379,"
    " http://10.0.0.9:8080/metadata or P2PHANDSHAKE",
)
TIMEOUT = option(
    "-W", "--timeout", type=seconds, default=30.0, metavar="S", help="seconds to wait for answers (%(default)s)"
)


def run_list(arguments: argparse.Namespace, out: Output) -> int:
    """kvferry ls: print a line for each engine. It has failed where an engine that was named is not reachable."""
    found: list[Member] = []
    for name in arguments.names or [""]:
        found += _members(arguments, name)
    if arguments.stale:
        found = [member for member in found if member["state"] != REACHABLE]
    now = datetime.now(timezone.utc)
    rows = [[*map(str, _row(member, now))] for member in found]
    if found:
        out.table(("NAME", "STATE", "KIND", "ADDRESS", "SINCE", "BUFFERS", "MEMORY"), rows, (5, 6))
    for member in found:
        if "problem" in member:
            out.detail(f"{member['name']}: {member['problem']}")
    if not found:
        out.note("no engines" if not arguments.stale else "no engines that are not reachable")
    out.result(found)
    missing = [member for member in found if member["state"] != REACHABLE]
    return status.FAILED if arguments.names and missing else status.OK


def _members(arguments: argparse.Namespace, name: str) -> list[Member]:
    try:
        return _texts.members(arguments.store, name, arguments.timeout)
    except (DescribeError, LibraryError, ValueError) as e:
        raise CommandError(str(e)) from e


def _row(member: Member, now: datetime) -> tuple[object, ...]:
    since = member.get("since")
    return (
        member["name"],
        member["state"],
        member.get("kind", "-"),
        member.get("address", "-"),
        _ago(since, now) if since else "-",
        f"{member['buffers']}{'+' if member.get('truncated') else ''}",
        memory_text(member["bytes"]),
    )


def _ago(since: str, now: datetime) -> str:
    """How long ago a time was."""
    passed = (now - datetime.fromisoformat(since.replace("Z", "+00:00"))).total_seconds()
    return age(max(0.0, passed))  # the engine's clock may be ahead


def run_remove(arguments: argparse.Namespace, out: Output) -> int:
    """kvferry rm: show the engine, ask, and remove it."""
    (member,) = _members(arguments, arguments.name)
    if member["state"] == "missing" and "kind" not in member:
        raise CommandError(f"the store knows no engine {arguments.name!r}")  # its URL may have a password
    out.note(described(member))
    if member["state"] == REACHABLE and not arguments.force:
        raise CommandError(f"engine {arguments.name!r} lives; with --force its entries are removed nevertheless")
    if not arguments.yes and not confirmed(arguments.name):
        out.note("nothing was removed")
        return status.FAILED
    try:
        _texts.forget(arguments.store, arguments.name, arguments.force, arguments.timeout)
    except (DescribeError, ValueError) as e:
        raise CommandError(str(e)) from e
    out.note(f"removed {arguments.name}")
    out.result({"removed": member})
    return status.OK


def described(member: Member) -> str:
    """An engine in a line."""
    at = f" at {member['address']}" if "address" in member else ""
    why = f" ({member['problem']})" if "problem" in member else ""
    return f"{member['name']}: {member.get('kind', 'engine')}{at}, {member['state']}{why}"


def confirmed(name: str) -> bool:
    """Ask the user on the terminal. CommandError where there is none."""
    if not sys.stdin.isatty():
        raise CommandError(
            f"nobody can be asked whether to remove {name}: standard input is no terminal; --yes answers"
        )
    print(f"remove {name}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


LIST = Command(
    name="ls",
    help="list the engines that a metadata store knows",
    description="List the engines that a metadata store knows: whether each is reachable, or stale, which means that"
    " nobody or another engine answers at its address; whether it is kvferry's or Mooncake's; its address; for how long"
    " it has had its name, by its own clock; and what memory it offers. -v says what is wrong. The settings of engines"
    " count, such as MC_METADATA_CLUSTER_ID and passwords. Mooncake's HTTP server cannot list: name the engines. With"
    " P2PHANDSHAKE, engines are named by their addresses. With names, the exit status is 1 where one of them is not"
    " reachable.",
    run=run_list,
    options=(
        STORE,
        option("names", metavar="NAME", nargs="*", help="engines to list (all that the store knows)"),
        option("--stale", action="store_true", help="only those that are not reachable"),
        TIMEOUT,
    ),
    examples=(
        Example("kvferry ls etcd://10.0.0.9:2379", "all engines of a cluster"),
        Example("kvferry ls P2PHANDSHAKE 10.0.0.2:15234", "one engine, by its address"),
    ),
)

REMOVE = Command(
    name="rm",
    help="remove an engine that is gone from a metadata store",
    description="Remove the entries that a killed engine has left in a metadata store. It asks before. An engine that"
    " answers, or may live, is not removed unless --force is given.",
    run=run_remove,
    options=(
        STORE,
        option("name", metavar="NAME", help="the engine's name"),
        option("-y", "--yes", action="store_true", help="do not ask"),
        option("--force", action="store_true", help="also an engine that answers, or may live"),
        TIMEOUT,
    ),
    examples=(Example("kvferry rm etcd://10.0.0.9:2379 node7 --yes", "without a question"),),
)
