"""Engines and fork(): an inherited engine refuses, a new one works."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.inprocess import run_python
from support.peers import unavailable

NOT_ALLOWED = 77  # exit status of a program that may not do what it is for


def forked(program: str, stderr: str = "", **settings: str) -> None:
    """Run a program that must succeed, with that on its standard error, or nothing."""
    # From 3.12 on Python warns of every fork() of a process with threads.
    done = run_python(program, limit=90, PYTHONWARNINGS="ignore::DeprecationWarning", **settings)
    if done.returncode == NOT_ALLOWED:
        unavailable("mount namespaces cannot be made here: run as root, with CAP_SYS_ADMIN")
    assert done.returncode == 0, done.stderr
    assert stderr in done.stderr if stderr else done.stderr == ""


def test_a_child_of_a_parent_that_only_imported_makes_engines_as_ever() -> None:
    forked("""
import mooncake.engine
assert child(works) == 0
works()
""")


def test_siblings_that_load_the_library_after_the_fork_pick_different_ports() -> None:
    """What the kernel gave the parent at exec to seed generators with is the same in all of them."""
    forked("""
reading, writing = os.pipe()
def tell_ports():
    os.write(writing, " ".join(name(start()) for _ in range(3)).encode() + b"\\n")
for _ in range(3):
    assert child(tell_ports) == 0
assert "mooncake.engine" not in sys.modules
ports = os.read(reading, 4096).splitlines()
assert len(set(ports)) == 3, ports
""")


def test_every_call_of_an_inherited_engine_says_at_once_why_it_fails() -> None:
    forked("""
import inspect
from mooncake.engine import TransferEngine
engines = [start(), TransferEngine()]
methods = [n for n, _ in inspect.getmembers(TransferEngine, inspect.isfunction) if not n.startswith("_")]
assert len(methods) == 41
def refuses():
    for engine in engines:
        assert isinstance(engine, TransferEngine)
        for name in methods:
            count = len(inspect.signature(getattr(TransferEngine, name)).parameters) - 1
            begin = time.monotonic()
            try:
                getattr(engine, name)(*["127.0.0.1:1"] * count)
            except RuntimeError as e:
                assert f"made by process {os.getppid()}" in str(e) and "make a new TransferEngine()" in str(e), e
            else:
                raise AssertionError(name)
            assert time.monotonic() - begin < 5
assert child(refuses) == 0
""")


def test_a_new_engine_works_in_a_child_and_a_grandchild_and_the_parents_goes_on() -> None:
    forked("""
works()
mine = start()
def in_child():
    works()
    assert child(works) == 0
    works()
for _ in range(3):
    assert child(in_child) == 0
assert mine.send_probe(name(mine)) == 0
works()
""")


def test_a_child_never_takes_an_ancestors_copy_for_its_own_though_its_file_has_the_same_number() -> None:
    forked("""
import kvferry._library
make = kvferry._library._memory_file
def always_77():
    made = make()
    os.dup2(made, 77)
    os.close(made)
    return 77
kvferry._library._memory_file = always_77
e = start()
def in_child():
    works()
    assert child(works) == 0
assert child(in_child) == 0
""")


def test_no_copy_of_the_library_stays_on_the_disk(tmp_path: object) -> None:
    forked(
        """
e = start()
assert child(works) == 0
assert os.listdir(os.environ["TMPDIR"]) == []
""",
        TMPDIR=str(tmp_path),
    )


UNUSABLE = {
    "may not run code": ["-t", "tmpfs", "-o", "noexec,size=64m"],
    "is too small": ["-t", "tmpfs", "-o", "size=1m"],
    "is read-only": ["-t", "tmpfs", "-o", "ro"],
}


@pytest.mark.parametrize("options", UNUSABLE.values(), ids=UNUSABLE)
def test_a_child_needs_no_directory_for_temporary_files(options: list[str], tmp_path: Path) -> None:
    """As in containers, which may have none that can be written to, and run code from."""
    command = ["mount", *options, "none", str(tmp_path)]
    forked(
        f"""
import ctypes, subprocess
CLONE_NEWNS = 0x20000
if ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0 or subprocess.run(["mount", "--make-rprivate", "/"]).returncode != 0:
    os._exit({NOT_ALLOWED})
subprocess.run({command!r}, check=True)
import tempfile
tempfile._candidate_tempdir_list = lambda: [os.environ["TMPDIR"]]
e = start()
def in_child():
    works()
    assert child(works) == 0
assert child(in_child) == 0
""",
        TMPDIR=str(tmp_path),
    )


def test_where_no_file_in_memory_may_be_run_the_copy_is_a_temporary_one() -> None:
    forked("""
import kvferry._library
def refused():
    raise OSError(13, "memfd_create")
kvferry._library._memory_file = refused
e = start()
assert child(works) == 0
""")


def test_a_child_that_can_have_no_copy_says_where_it_tried() -> None:
    forked("""
import kvferry._library, tempfile
def refused(*_, **__):
    raise OSError(13, "no")
e = start()
kvferry._library._memory_file = refused
tempfile.NamedTemporaryFile = refused
def says_so():
    try:
        start()
    except kvferry._library.LibraryError as error:
        assert str(error).endswith("for this forked process: [Errno 13] no; [Errno 13] no"), error
    else:
        raise AssertionError
assert child(says_so) == 0
""")


def test_an_inherited_engine_ends_quietly_with_its_child() -> None:
    forked("""
e = start()
port = name(e)
pid = os.fork()
if pid == 0:
    del e
    sys.exit(0)  # as any program ends, with what is registered to run then
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert start().send_probe(port) == 0
""")


def test_the_error_comes_also_when_locks_were_held_at_the_time_of_the_fork() -> None:
    forked("""
e = start()
stop = threading.Event()
def use():
    while not stop.is_set():
        e.free_managed_buffer(e.allocate_managed_buffer(300 << 20), 300 << 20)
threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
for t in threads: t.start()
def refuses():
    try:
        e.allocate_managed_buffer(1)
    except RuntimeError:
        works()
    else:
        raise AssertionError
for _ in range(5):
    assert child(refuses) == 0
stop.set()
for t in threads: t.join()
""")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_have_engines_of_their_own(method: str) -> None:
    forked(f"""
import multiprocessing
from support.inprocess import probe_oneself
if __name__ == "__main__":
    e = start()
    context = multiprocessing.get_context({method!r})
    with context.Pool(2) as pool:
        assert pool.map(probe_oneself, range(4), chunksize=1) == [0, 0, 0, 0]
    assert e.send_probe(name(e)) == 0
""")


SLOW_TO_OPEN = """
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void open_slowly(void)
{
    int pipe = atoi(getenv("TEST_PIPE"));
    if (write(pipe, "begin", 5) == 5 && usleep(300000) == 0 && write(pipe, "end", 3) != 3)
        abort();
}
"""


def test_no_fork_happens_in_the_middle_of_the_opening_of_a_library(tmp_path: Path) -> None:
    """The child's loader would go on from the state of that moment."""
    compiler = shutil.which("cc")
    if compiler is None:
        unavailable("there is no C compiler: install gcc")
    library = tmp_path / "libslow.so"
    command = [compiler, "-D_GNU_SOURCE", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=SLOW_TO_OPEN, text=True, check=True)
    forked(
        """
from mooncake.engine import TransferEngine
progress, pipe = os.pipe()
os.environ["TEST_PIPE"] = str(pipe)
opener = threading.Thread(target=TransferEngine().initialize, args=("127.0.0.1", "P2PHANDSHAKE", "ascend", ""))
opener.start()
assert os.read(progress, 5) == b"begin"
def sees_the_end():
    os.set_blocking(progress, False)
    assert os.read(progress, 3) == b"end"
assert child(sees_the_end) == 0
opener.join()
""",
        stderr=f"{library}: it has no function",
        KVFERRY_ASCENDCL=str(library),
    )
