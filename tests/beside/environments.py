"""Virtual environments into which wheels are installed, and what a program finds in them."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from support import venvs

COMMAND_LIMIT = 600.0  # seconds: pip may have to download wheels, or to build kvferry's
PROGRAM_LIMIT = 60.0
DISTRIBUTIONS = {"kvferry": "kvferry", "mooncake": venvs.PACKAGE}

# Prints as JSON what a program sees of the two. It imports what `first` names before all others.
LOOK = """
import importlib, importlib.util, json
if first: importlib.import_module(first)
found = {"package": importlib.util.find_spec("mooncake").origin}
spec = importlib.util.find_spec("mooncake.engine")
try:
    from mooncake import BufferPool
    found["buffer pool"] = f"{BufferPool.__module__}.{BufferPool.__name__}"
except ImportError:
    found["buffer pool"] = "ImportError"
import mooncake.engine
from mooncake.engine import TransferEngine
assert mooncake.engine.__file__ == spec.origin
found["engine"] = "mooncake" if spec.origin.endswith(".so") else "kvferry"
a, b = TransferEngine(), TransferEngine()
for engine in a, b: assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
here, there = a.allocate_managed_buffer(4096), b.allocate_managed_buffer(4096)
text = b"0123456789" * 100
assert a.write_bytes_to_buffer(here, text, len(text)) == 0
assert a.transfer_sync_write(f"127.0.0.1:{b.get_rpc_port()}", here, there, len(text)) == 0
found["works"] = b.read_bytes_from_buffer(there, len(text)) == text
print(json.dumps(found))
"""


class Wheels(NamedTuple):
    """What is installed: the wheels of both, and of all that they require, for one interpreter."""

    python: str
    folders: list[Path]


def made(folder: Path) -> Wheels:
    """Build kvferry's wheel in a new folder, and download the others unless that was done before. Unavailable says why
    they cannot be had."""
    python, version = shutil.which(venvs.base_python()) or sys.executable, f"{venvs.VERSIONS[-1]}.post1"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(venvs.REPOSITORY)])
    kept = venvs.PEERS / "wheels"
    kept.mkdir(parents=True, exist_ok=True)
    with venvs.locked(venvs.PEERS / "wheels.lock"):
        if not list(kept.glob(f"*-{version}-*.whl")):
            try:
                run([*pip, "--python", python, "download", "--dest", str(kept), f"{venvs.PACKAGE}=={version}"])
            except AssertionError as e:
                raise venvs.Unavailable(f"Mooncake's wheel cannot be downloaded: {venvs.last_line(str(e))}") from e
    return Wheels(python, [folder, kept])


def run(command: list[str], limit: float = COMMAND_LIMIT, **settings: str) -> str:
    """Run a command, which must succeed, and return what it prints. It finds nothing of this process's packages."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, env={**inherited, **settings}, cwd="/", capture_output=True, text=True, timeout=limit
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Environment:
    """A virtual environment."""

    def __init__(self, wheels: Wheels, home: Path) -> None:
        run([wheels.python, "-m", "venv", "--without-pip", str(home)])
        self._wheels = wheels
        self._python = str(home / "bin" / "python")
        self.packages = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))"))

    def install(self, package: str, *options: str) -> None:
        """Install "kvferry" or "mooncake", with what it requires."""
        folders = [f"--find-links={folder}" for folder in self._wheels.folders]
        self._pip("install", "--no-index", "--no-compile", *folders, *options, DISTRIBUTIONS[package])

    def uninstall(self, package: str) -> None:
        self._pip("uninstall", "--yes", DISTRIBUTIONS[package])

    def check(self) -> str:
        """Return the answer of `pip check`."""
        return self._pip("check")

    def _pip(self, command: str, *arguments: str) -> str:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self._python]
        return run([*pip, command, *arguments])

    def run(self, program: str, *arguments: str, **settings: str) -> str:
        """Return what a Python program prints here. `settings` are environment variables."""
        return run([self._python, "-c", program, *arguments], PROGRAM_LIMIT, MC_FORCE_TCP="1", **settings)

    def look(self, first: str = "", **settings: str) -> dict[str, Any]:
        """Return what LOOK finds."""
        printed = self.run(f"first = {first!r}\n{LOOK}", **settings)
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    def put_on_top_of(self, other: Environment) -> None:
        """Let programs here find the other environment's packages behind their own, .pth files included."""
        (self.packages / "below.pth").write_text(f"import site; site.addsitedir({str(other.packages)!r})\n")

    def damaged(self) -> list[str]:
        """Return the files of installed distributions that are missing, or are not what was installed."""
        records = list(self.packages.glob("*.dist-info/RECORD"))
        assert records
        return [name for record in records for name in damaged(self.packages, record)]


def damaged(packages: Path, record: Path) -> list[str]:
    found = []
    with record.open(newline="", encoding="utf-8") as lines:
        for name, digest, _ in csv.reader(lines):
            path = packages / name
            if not path.exists() or (digest and digest != digest_of(path)):
                found.append(name)
    return found


def digest_of(path: Path) -> str:
    """Return the digest of a file as RECORD has it."""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
