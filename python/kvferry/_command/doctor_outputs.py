"""What the doctor says of the places where engines show what they do: logs, traces, metrics, sockets.

An engine without one of them works, and only its log says so.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator

from kvferry._command.findings import Finding, info, warning
from kvferry._command.settings import Settings, value
from kvferry._command.top_sources import OF_OTHERS, folder_of


def of_outputs(found: Settings) -> Iterator[Finding]:
    """Whether an engine can write its log and its trace, and show its metrics."""
    for name, why in (
        ("MC_LOG_DIR", _unusable(value(found, "MC_LOG_DIR"))),
        ("KVFERRY_TRACE_FILE", _unusable(_folder_of(value(found, "KVFERRY_TRACE_FILE")))),
        ("KVFERRY_SOCKET_DIR", of_sockets(value(found, "KVFERRY_SOCKET_DIR"))),
        ("KVFERRY_METRICS_LISTEN", of_address(value(found, "KVFERRY_METRICS_LISTEN"))),
    ):
        if why and (name, value(found, name)) == ("KVFERRY_SOCKET_DIR", "auto"):
            yield info(
                "outputs", f"`kvferry top` will find no engines of this user: {why}", f"{name} may name another folder."
            )
        elif why:
            yield warning("outputs", f"{name} has no effect: {why}", "Correct it: only the log of an engine tells.")


def of_sockets(setting: str) -> str:
    """Why `kvferry top` does not find engines by a folder of sockets; "" if it does."""
    folder = folder_of(setting)
    if folder is None:
        return ""
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        return _unusable(str(folder.parent))  # an engine makes the last part
    except OSError as e:
        return str(e)
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is no folder"
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to user {status.st_uid}, and not to user {os.geteuid()}"
    if status.st_mode & OF_OTHERS:
        return f"{folder} is open to other users: its mode has to be 0700"
    return ""


def of_address(setting: str) -> str:
    """Why metrics cannot be served at HOST:PORT or unix:PATH; "" if they can. The port may be another engine's."""
    if not setting:
        return ""
    if setting.startswith("unix:"):
        return _unusable(_folder_of(setting[len("unix:") :]))
    host, colon, ports = setting.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}(-[0-9]{1,5})?", ports):
        return f"{setting} is neither HOST:PORT nor unix:PATH"
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as s:
            s.bind(address)
    except (OSError, UnicodeError) as e:
        return f"{host} is no address of this machine: {e}"
    return ""


def _folder_of(path: str) -> str:
    return os.path.dirname(os.path.abspath(path)) if path else ""


def _unusable(folder: str) -> str:
    """Why this user can make no file in a folder; "" if it can, or none is named."""
    if not folder or (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        return ""
    if os.path.isdir(folder):
        return f"user {os.geteuid()} may not write to {folder}"
    return f"{folder} is no folder" if os.path.exists(folder) else f"{folder} does not exist"
