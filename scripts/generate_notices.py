"""Write THIRD_PARTY_NOTICES.txt: the licences and notices of all that is linked into the library.

`generate_notices.py` writes the file, `generate_notices.py --check` fails when it is not what would be written. Go and
ziglang are those that build_library.py finds.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import build_library
import go_modules

LEGAL = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|PATENTS)(\.\w+)?", re.IGNORECASE)
RULE = "=" * 80
INTRODUCTION = """\
What is linked into kvferry's library, and the licences and notices of it.
Made by scripts/generate_notices.py.

{count} modules, {megabytes} MB to download:

{table}

Besides them, Go's runtime and standard library, and in wheels from PyPI functions of Zig's run-time library.
"""


class Part:
    """Something that is linked in: a name, and the files that must go with it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        paths = sorted(path for path in folder.iterdir() if LEGAL.fullmatch(path.name))
        if not any(path.name.upper().startswith(("LICEN", "COPYING")) for path in paths):
            raise go_modules.FetchError(f"{name} has no licence in {folder}")
        self.texts = [(path.name, path.read_text(encoding="utf-8").strip("\n").rstrip()) for path in paths]


def main() -> int:
    try:
        text = notices()
    except go_modules.FetchError as error:
        print(f"generate_notices.py: {error}", file=sys.stderr)
        return 1
    if sys.argv[1:] != ["--check"]:
        go_modules.NOTICES.write_text(text, encoding="utf-8")
    elif not go_modules.NOTICES.exists() or go_modules.NOTICES.read_text(encoding="utf-8") != text:
        print(f"{go_modules.NOTICES.name} is out of date: run `make generate`", file=sys.stderr)
        return 1
    return 0


def notices() -> str:
    go, zig = build_library.find_go(), build_library.bundled(build_library.ZIG_PACKAGE, "LICENSE")
    if go is None or zig is None:
        raise go_modules.FetchError("this takes Go and the PyPI package ziglang")
    go_modules.fetch(go)
    modules = go_modules.linked(go)
    parts = [Part(f"{module.path} {module.version}", module.folder) for module in modules]
    parts.append(Part("Go", Path(ask(go, "GOROOT"))))
    parts.append(Part("Zig", Path(zig).parent))
    cache = Path(ask(go, "GOMODCACHE"))
    size = sum(archive(cache, module).stat().st_size for module in modules)
    introduction = INTRODUCTION.format(
        count=len(modules),
        megabytes=round(size / 1e6),
        table="\n".join(f"    {module.path} {module.version}" for module in modules),
    )
    return "\n".join([introduction, *sections(parts)])


def sections(parts: list[Part]) -> Iterator[str]:
    """Yield each text once, under the names of all parts that it belongs to."""
    owners: dict[str, list[str]] = {}
    for part in parts:
        for name, text in part.texts:
            owners.setdefault(text, []).append(f"{part.name}: {name}")
    for text, names in owners.items():
        yield "\n".join([RULE, *names, RULE, "", text, ""])


def ask(go: str, variable: str) -> str:
    return subprocess.run([go, "env", variable], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def archive(cache: Path, module: go_modules.Module) -> Path:
    """Return where the Go command keeps the module as it was downloaded; in paths it writes "!a" for "A"."""
    path, version = (
        re.sub("[A-Z]", lambda letter: "!" + str(letter[0]).lower(), name) for name in (module.path, module.version)
    )
    return cache / "cache" / "download" / path / "@v" / f"{version}.zip"


if __name__ == "__main__":
    sys.exit(main())
