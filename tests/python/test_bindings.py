"""The generated bindings agree with the headers, and with what a C compiler makes of them."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kvferry import _bindings
from support.peers import unavailable

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "generate_bindings.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_bindings", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_bindings"] = module
    spec.loader.exec_module(module)
    return module


def generated(generator: ModuleType, text: str) -> str:
    header = generator.Header()
    generator.parse(header, text)
    return str(generator.render(header))


def test_the_bindings_in_the_repository_are_current() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bindings_that_are_not_current_are_noticed(tmp_path: Path) -> None:
    for part in ("capi/include", "scripts", "python/kvferry"):
        (tmp_path / part).mkdir(parents=True)
    for header in (REPOSITORY / "capi" / "include").glob("*.h"):
        shutil.copy(header, tmp_path / "capi" / "include")
    shutil.copy(SCRIPT, tmp_path / "scripts")
    command = [sys.executable, str(tmp_path / "scripts" / SCRIPT.name)]
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 1
    assert subprocess.run(command).returncode == 0
    assert subprocess.run([*command, "--check"]).returncode == 0
    with (tmp_path / "capi" / "include" / "transfer_engine_ext.h").open("a") as header_file:
        header_file.write("int kvferry_another(int x);\n")
    done = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "run scripts/generate_bindings.py" in done.stderr


def test_structs_have_the_layout_that_a_c_compiler_gives_them(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        unavailable("there is no C compiler: install gcc")
    structs = {name: s for name, s in vars(_bindings).items() if name.endswith("_t") and "desc_desc" not in name}
    members = [(s, f[0]) for s, t in structs.items() for f in t._fields_]
    lines = [f'printf("%zu\\n", sizeof({s}));' for s in structs]
    lines += [f'printf("%zu\\n", offsetof({s}, {m}));' for s, m in members]
    source = '#include <stdio.h>\n#include "transfer_engine_ext.h"\nint main(void) {' + "\n".join(lines) + "}\n"
    (tmp_path / "layout.c").write_text(source)
    include = f"-I{REPOSITORY / 'capi' / 'include'}"
    subprocess.run([compiler, include, "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    printed = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    ours = [ctypes.sizeof(structs[s]) for s in structs] + [getattr(structs[s], m).offset for s, m in members]
    assert list(map(int, printed.split())) == ours


def test_each_kind_of_declaration_is_read(generator: ModuleType) -> None:
    text = generated(
        generator,
        """
        #define KVFERRY_LIMIT (-7) /* why */
        #define id_t int32_t
        typedef void *handle_t;
        struct pair { const char *name; char text[64]; id_t first, second; };
        typedef struct pair pair_t;
        typedef struct block { uint64_t size; } block_t;
        handle_t open_it(const char *name, const uint64_t *list, handle_t *out);
        void close_it(handle_t handle, pair_t by_value, struct block *by_reference);
        """,
    )
    for line in (
        "KVFERRY_LIMIT = -7",
        '("text", ctypes.c_char * 64),',
        '("second", ctypes.c_int32),',
        '"open_it": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]),',
        '"close_it": (None, [ctypes.c_void_p, pair_t, ctypes.POINTER(block_t)]),',
        "open_it: Callable[[Text, Address, Any], int | None]",
    ):
        assert line in text
    compile(text, "generated", "exec")


@pytest.mark.parametrize(
    "declaration",
    [
        "int f(int (*callback)(int));",
        "int f(unknown_t x);",
        "extern int variable;",
        "enum color { RED };",
        "#define SQUARE(x) ((x) * (x))",
        "int f(int)",
        "int f(int);",
    ],
)
def test_a_declaration_that_the_script_does_not_know_is_an_error(generator: ModuleType, declaration: str) -> None:
    with pytest.raises(generator.UnsupportedError):
        generated(generator, declaration + "\n")
