"""Check which package imports which: `python3 scripts/check_imports.py`.

MAY_IMPORT is the whole table. An import that it does not list is an error, and so is an entry that no import uses, so
that the table stays a true picture of the code. Tests may import more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODULE = "kvferry/"

MAY_IMPORT = {
    # The engine: it sees transports, stores and devices through interfaces.
    "core": "core/address core/clock core/device core/fair core/hostmem core/layout core/metadata core/metadata/kv"
    " core/metrics core/security core/staging core/status core/trace",
    "core/address": "core/shut core/status",
    "core/clock": "",
    "core/device": "",
    "core/fair": "",
    "core/hostmem": "core/clock core/threads",
    "core/layout": "",
    "core/metadata": "core/address core/fair core/metadata/kv core/metrics core/security core/shut core/status",
    "core/metadata/etcd": "core/metadata/kv",
    "core/metadata/kv": "core/status",
    "core/metadata/redis": "core/metadata/kv",
    "core/metrics": "",
    "core/metrics/exporter": "core/fair core/metrics core/shut core/status",
    "core/reload": "core/status",
    "core/security": "core/reload core/status",
    "core/shut": "",
    "core/spin": "core/clock",
    "core/staging": "core/device core/hostmem core/spin core/status",
    "core/status": "",
    "core/threads": "",
    "core/trace": "core/clock",
    # The transport.
    "tcp": "core core/address core/fair core/metrics core/status tcp/client tcp/samehost tcp/server tcp/sockio"
    " tcp/wire",
    "tcp/client": "core core/address core/clock core/hostmem core/layout core/metadata core/metrics core/security"
    " core/spin core/status core/trace tcp/samehost tcp/sockio tcp/wire",
    "tcp/samehost": "core/clock core/hostmem core/spin core/status core/threads tcp/sockio tcp/wire",
    "tcp/server": "core core/clock core/fair core/hostmem core/layout core/metrics core/security core/shut"
    " core/spin core/staging core/status core/trace tcp/samehost tcp/sockio tcp/wire",
    "tcp/sockio": "core/clock core/hostmem core/metrics core/shut core/spin core/threads",
    "tcp/wire": "",
    # Devices.
    "ascend": "core/device core/status internal/dl internal/driver",
    "cuda": "core/device core/status internal/dl internal/driver",
    "internal/dl": "",
    "internal/driver": "core/device core/status internal/dl",
    # Products.
    "capi": "ascend core core/device core/layout core/metadata core/metadata/etcd core/metadata/redis core/metrics"
    " core/metrics/exporter core/status core/threads cuda metaserver tcp",
    "metaserver": "core/address core/fair core/reload core/shut core/status",
    # What tests, benchmarks and the demo use; nothing else imports these.
    "bench": "",
    "core/hostmem/hostmemtest": "",
    "core/metadata/kv/kvtest": "core/metadata/kv core/status internal/porttest",
    "core/metadata/metadatatest": "core/metadata core/status",
    "core/transporttest": "core core/metrics core/status",
    "internal/porttest": "",
    "internal/driver/drivertest": "core/device core/hostmem tests/simtest",
    "tcp/internal/tcptest": "core core/device core/hostmem core/metadata core/staging internal/porttest tcp/wire",
    "tests/kerneltest": "core/device",
    "tests/simtest": "ascend core/device cuda internal/dl internal/driver",
}


def main() -> int:
    complaints = list(check(imports()))
    for complaint in complaints:
        print(f"check_imports.py: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


def imports() -> dict[str, set[str]]:
    """What each package of the module imports of the module, without its tests."""
    command = ["go", "list", "-json=ImportPath,Imports", "./..."]
    text = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout.decode().strip()
    found, decoder = {}, json.JSONDecoder()
    while text:
        package, end = decoder.raw_decode(text)
        ours = [path for path in package.get("Imports", []) if path.startswith(MODULE)]
        found[package["ImportPath"][len(MODULE) :]] = {path[len(MODULE) :] for path in ours}
        text = text[end:].lstrip()
    return found


def check(found: dict[str, set[str]]) -> list[str]:
    """What is wrong: one sentence for each import and each entry."""
    complaints = [f"{package} is in MAY_IMPORT, but does not exist" for package in sorted(set(MAY_IMPORT) - set(found))]
    for package, imported in sorted(found.items()):
        if package not in MAY_IMPORT:
            complaints.append(f"{package} is not in MAY_IMPORT")
            continue
        allowed = set(MAY_IMPORT[package].split())
        complaints += [f"{package} must not import {other}" for other in sorted(imported - allowed)]
        complaints += [f"{package} does not import {other}: correct MAY_IMPORT" for other in sorted(allowed - imported)]
    return complaints


if __name__ == "__main__":
    sys.exit(main())
