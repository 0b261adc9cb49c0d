"""kvferry info: what a bug report needs."""

from __future__ import annotations

import argparse
from typing import Any

from kvferry._command import settings, status
from kvferry._command.declaration import Command
from kvferry._command.output import Output
from kvferry._probes import devices, software

NONE = "-"


def run(_: argparse.Namespace, out: Output) -> int:
    """The command."""
    about = software.software()
    kinds = devices.kinds()
    found: settings.Settings = {"settings": [], "unknown": []} if about.library_problem else settings.read()
    out.table(("what", "is"), software_rows(about) + [device_row(kind) for kind in kinds])
    changed = [s for s in found["settings"] if s["source"] == "environment"]
    shown = found["settings"] if out.verbose else changed
    if shown:
        out.text()
        out.table(("setting", "value", "from", "default"), [setting_row(setting) for setting in shown])
    for setting in changed:
        if setting["problem"]:
            out.text(f"{setting['name']} is ignored: {setting['problem']}; the default is used")
    for unknown in found["unknown"]:
        out.text(unknown_text(unknown))
    out.result(
        {
            "software": {**about._asdict(), "mooncake": dict(about.mooncake)},
            "devices": [kind._asdict() for kind in kinds],
            **found,
        }
    )
    return status.OK


def software_rows(about: software.Software) -> list[tuple[str, Any]]:
    """The software, a row each."""
    winner = "kvferry's" if about.engine_is_kvferry else "not kvferry's"
    return [
        ("kvferry", about.kvferry),
        ("commit", about.commit or "not known"),
        ("library", about.library or about.library_problem),
        ("version of the library", about.library_version or NONE),
        ("mooncake.engine", f"{about.engine} ({winner})" if about.engine else "there is none"),
        ("Mooncake beside it", ", ".join(f"{name} {version}" for name, version in about.mooncake) or "none"),
        ("Python", about.python),
        ("kernel", f"{about.kernel} {about.machine}"),
        ("C library", about.c_library or "not glibc"),
    ]


def device_row(kind: devices.Kind) -> tuple[str, str]:
    """The devices of a kind, as a row."""
    name = {"npu": "NPUs", "cuda": "GPUs"}[kind.kind]
    if kind.problem:
        return name, f"none: {kind.problem}"
    return name, f"{kind.number}{' simulated' if kind.simulated else ''}, by {kind.library}"


def setting_row(setting: settings.Setting) -> tuple[str, str, str, str]:
    """A setting, as a row."""
    return setting["name"], setting["value"] or NONE, setting["source"], setting["default"] or NONE


def unknown_text(unknown: settings.Unknown) -> str:
    """A sentence about a variable that is no setting."""
    meant = f": did you mean {unknown['nearest']}?" if unknown["nearest"] else ""
    if unknown["own"]:
        return f"{unknown['name']} is no setting of kvferry and has no effect{meant}"
    return f"{unknown['name']} is not read by kvferry{meant}"


COMMAND = Command(
    name="info",
    help="print what a bug report needs: versions, devices, settings",
    description="Print the versions of kvferry, its library and the system, the Mooncake distributions beside it, the"
    " devices, and the settings that the environment changes. --verbose prints all settings. Secrets are asterisks.",
    run=run,
)
