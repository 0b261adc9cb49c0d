"""Install vLLM or SGLang for the tests: `python scripts/real_environment.py vllm|sglang`.

All of it goes to build/real: an environment for each of them, Mooncake's package by itself, the installer, and the
installer's cache of wheels. What is there already is left alone. PyTorch is installed without NVIDIA's libraries, which
nothing uses here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = REPOSITORY / "tests" / "real"
HOME = REPOSITORY / "build" / "real"
UV = "uv==0.13.9"
PYTHON = "3.11"  # for which all of them have wheels
MOONCAKE = "mooncake-transfer-engine-non-cuda==0.3.13.post1"


class Needs(NamedTuple):
    """What an environment needs, measured with an empty cache."""

    what: str
    disk: float  # GB
    download: float  # GB
    minutes: str
    extra: tuple[str, ...] = ()  # what is installed beside the lock file


ENVIRONMENTS = {
    "sglang": Needs("SGLang 0.5.23 and vllm-ascend 0.23.0", 2.5, 0.9, "one or two", ("vllm-ascend==0.23.0",)),
    "vllm": Needs("vLLM 0.32.0 for CPUs", 2.8, 1.1, "one or two"),
}


class Unavailable(Exception):
    """The environment cannot be had here; the text says why, and what to do."""


def install(name: str) -> None:
    """Make the environment of that name, unless it is there as the lock file has it."""
    needs = ENVIRONMENTS[name]
    stamp = HOME / name / "installed"
    wanted = digest(LOCKS / f"{name}.txt", LOCKS / "cudaless.py", Path(__file__))
    if stamp.exists() and stamp.read_text() == wanted:
        return
    python = find_python()
    check_machine(needs)
    print(
        f"Installing {needs.what} into {HOME / name}: {needs.disk} GB of disk, {needs.download} GB to download at most,"
        f" {needs.minutes} minutes. Remove {HOME} to be rid of it.",
        flush=True,
    )
    began = time.monotonic()
    uv = installer()
    run(uv, "venv", "--quiet", "--clear", "--no-project", "--python", python, HOME / name)
    interpreter = HOME / name / "bin" / "python"
    pip = (uv, "pip", "install", "--quiet", "--no-deps", "--link-mode", "hardlink")
    run(*pip, "--python", interpreter, "--requirements", LOCKS / f"{name}.txt", *needs.extra)
    run(interpreter, LOCKS / "cudaless.py", next((HOME / name / "lib").glob("python*/site-packages/torch")))
    if not (HOME / "mooncake" / "mooncake").exists():
        run(*pip, "--python", interpreter, "--target", HOME / "mooncake", MOONCAKE)
    stamp.write_text(wanted)
    print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)


def find_python() -> str:
    """Return a Python of the version that is wanted."""
    name = f"python{PYTHON}"
    for candidate in (sys.executable, shutil.which(name)):
        if candidate and version(candidate) == PYTHON:
            return candidate
    raise Unavailable(f"there is no {name}, for which vLLM, SGLang and Mooncake all have wheels: install it")


def version(python: str) -> Optional[str]:
    """Return the version of an interpreter, None where it does not run."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def check_machine(needs: Needs) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Unavailable(
            f"the wheels of {needs.what} are those for Linux on x86-64, and this is {platform.platform()}"
        )
    for tool in ("cc", "readelf"):
        if shutil.which(os.environ.get("CC", tool).split()[0] if tool == "cc" else tool) is None:
            raise Unavailable(f"there is no {tool}: install gcc and binutils")
    HOME.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(HOME).free / 1e9
    if free < needs.disk + 1:
        raise Unavailable(f"{needs.what} takes {needs.disk} GB, and {HOME} has {free:.1f} GB free: 1 GB must be left")


def installer() -> Path:
    """Return uv, installed on first use."""
    uv = HOME / "tools" / "bin" / "uv"
    if not uv.exists():
        run(sys.executable, "-m", "venv", "--clear", HOME / "tools")
        run(HOME / "tools" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", UV)
    return uv


def run(*command: object) -> None:
    """Run a command, which must succeed."""
    words = [str(word) for word in command]
    environment = {**os.environ, "UV_CACHE_DIR": str(HOME / "cache"), "UV_PYTHON_PREFERENCE": "only-system"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    if subprocess.run(words, env=environment, cwd=HOME).returncode != 0:
        raise Unavailable(f"`{' '.join(words)}` failed: see above")


def digest(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in ENVIRONMENTS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        install(sys.argv[1])
    except Unavailable as reason:
        print(f"{sys.argv[1]}: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
