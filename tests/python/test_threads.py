"""At the limit of the threads that the system allows: calls fail, and the process lives on."""

from __future__ import annotations

import os

import pytest

from support.inprocess import run_python
from support.peers import unavailable

# A user of its own, whose processes and threads nobody else adds to. The limit does not hold for root.
LIMITED = """
import resource
from support.worker import become

HARD = resource.getrlimit(resource.RLIMIT_NPROC)[1]

def threads():
    return len(os.listdir("/proc/self/task"))

def allow(more):
    resource.setrlimit(resource.RLIMIT_NPROC, (threads() + more, HARD))

become(USER, True)
"""

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
USERS = iter(range(60100 + 100 * WORKER, 60200 + 100 * WORKER))


def limited(program: str) -> str:
    if os.geteuid() != 0:
        unavailable("another user cannot be had here: run as root")
    done = run_python(LIMITED.replace("USER", str(next(USERS))) + program, limit=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("more", [0, 1])
def test_transfers_go_on_when_no_further_thread_may_be_started(more: int) -> None:
    limited(f"""
a, b = start(), start()
size = 16 << 20
here, there = Mapping(size), Mapping(size)
assert b.register_memory(there.address, size) == 0
go, codes = threading.Event(), []
def work():
    go.wait()
    for _ in range(10):
        codes.append(a.transfer_sync_write(name(b), here.address, there.address, size))
        codes.append(a.transfer_sync_read(name(b), here.address, there.address, 4096))
workers = [threading.Thread(target=work) for _ in range(24)]
for w in workers: w.start()
allow({more})
go.set()
for w in workers: w.join()
assert codes == [0] * len(workers) * 20, set(codes)
""")


@pytest.mark.parametrize("left", [0, 1, 3, 8])
def test_an_engine_whose_threads_may_not_be_started_is_an_error(left: int) -> None:
    said = limited(f"""
from mooncake.engine import TransferEngine
e = TransferEngine()
allow({left})
assert e.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
allow(200)
works()
""")
    assert "cannot be started" in said
    assert "raise the pids limit of the container, or RLIMIT_NPROC" in said


ADDRESS_SPACE = """
import resource
def allow(more):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (more << 20), resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("more", [100, 500, 900, 1300, 1600, 1720, 1780, 2500])
def test_a_process_with_little_address_space_gets_an_error(more: int) -> None:
    """Go would end the process. With the last limit the library is loaded, and has no room for its threads."""
    done = run_python(
        ADDRESS_SPACE
        + f"""
allow({more})
from kvferry._library import LibraryError
try:
    from mooncake.engine import TransferEngine
    e = TransferEngine()
    assert e.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
except LibraryError as e:
    print(e, file=sys.stderr)
allow(100 << 10)
from mooncake.engine import TransferEngine
works()
"""
    )
    assert done.returncode == 0, done.stderr
    assert "RLIMIT_AS" in done.stderr


@pytest.mark.parametrize("more", [10, 50, 90, 110, 130, 170])
def test_a_process_with_little_writable_memory_gets_an_error(more: int) -> None:
    """As with little address space: Go would end the process."""
    done = run_python(
        f"""
import resource
data = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, ((data << 10) + ({more} << 20), resource.RLIM_INFINITY))
from kvferry._library import LibraryError
try:
    from mooncake.engine import TransferEngine
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
except LibraryError as e:
    print(e, file=sys.stderr)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
works()
"""
    )
    assert done.returncode == 0, done.stderr
    assert "RLIMIT_DATA" in done.stderr


def test_a_library_whose_threads_may_not_be_started_is_not_loaded() -> None:
    """become() has loaded it: so it is a forked child that loads its copy."""
    limited("""
from kvferry._library import LibraryError
from mooncake.engine import TransferEngine
def refused():
    allow(2)
    try:
        TransferEngine()
    except LibraryError as e:
        assert "RLIMIT_NPROC" in str(e), e
    else:
        raise AssertionError
    allow(200)
    works()
assert child(refused) == 0
""")
