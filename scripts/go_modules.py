"""The Go modules that the library is made of: which they are, and fetching the ones that this machine lacks.

The Go command fetches them from where its setting GOPROXY says. A source distribution brings them along in vendor/, and
needs none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
NOTICES = REPOSITORY / "THIRD_PARTY_NOTICES.txt"
ARCHITECTURES = ("amd64", "arm64")  # each may need modules of its own


class FetchError(Exception):
    """The modules cannot be had; the text says which, why, and what to do."""


class Module(NamedTuple):
    """A module that is linked into the library."""

    path: str
    version: str
    folder: Path  # its sources on this machine


def fetch(go: str) -> None:
    """See to it that the modules are on this machine. Says on standard error what is fetched, and from where."""
    if list_modules(go, "", GOPROXY="off").returncode == 0:
        return
    proxy = subprocess.run([go, "env", "GOPROXY"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    print(
        f"kvferry: fetching Go modules, {download_size()}, from {proxy}; the variable GOPROXY names another place",
        file=sys.stderr,
    )
    begin = time.monotonic()
    done = list_modules(go, "")
    if done.returncode != 0:
        raise FetchError(
            f"Go modules could not be fetched from {proxy}: {reason(done.stderr)}. Let GOPROXY name a proxy that this"
            " machine reaches, or install a wheel or a source distribution, which fetch no modules"
        )
    print(f"kvferry: fetched them in {time.monotonic() - begin:.0f} s", file=sys.stderr)


def linked(go: str) -> list[Module]:
    """Return the modules of the library for any architecture, by path. They must be on this machine."""
    found: set[Module] = set()
    for architecture in ARCHITECTURES:
        done = list_modules(
            go,
            "{{with .Module}}{{if .Version}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}{{end}}",
            GOARCH=architecture,
            GOOS="linux",
        )
        if done.returncode != 0:
            raise FetchError(reason(done.stderr))
        for path, version, folder in (line.split("\t") for line in done.stdout.splitlines() if line):
            found.add(Module(path, version, Path(folder)))
    return sorted(found)


def list_modules(go: str, template: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `go list` over all packages of the library, which fetches their modules unless the settings forbid it."""
    env = {**os.environ, "CGO_ENABLED": "1", "GOTOOLCHAIN": "local", **settings}
    command = [go, "list", "-deps", "-f", template, "./capi"]
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)


def reason(output: str) -> str:
    """Return the first line of an output of the Go command that is not about its progress."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("go: downloading")]
    return re.sub(r"^\S+\.go:\d+:\d+: ", "", lines[0]).rstrip(".") if lines else "the Go command does not say why"


def download_size() -> str:
    """Return how many modules there are, and their size, as the notices state it."""
    match = re.search(r"^(\d+ modules, \d+ MB)", NOTICES.read_text(encoding="utf-8"), re.MULTILINE)
    return match.group(1) if match else "of a size that the notices do not state"
