"""How an engine comes by its devices: asked for or not, found or not, named by the library or by whoever registers."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import devices
from support.devices import Release
from support.inprocess import run_python
from support.memory import Memory, transfer
from support.peer import Peer
from support.peers import Peers
from support.ports import free_range
from support.spans import scattered

pytestmark = pytest.mark.devices

SIZE = 1 << 20
SPANS = scattered([1, 4096, 700, 65537, 300_000])


def moves_bytes(near: Memory, far: Memory) -> None:
    """Check that bytes go both ways."""
    for opcode in ("write", "read"):
        transfer(near, far, opcode, SPANS)
        near.check()
        far.check()
        near.fill(2)


@pytest.fixture
def host(start_peer: Peers) -> Memory:
    """Host memory of an engine that knows nothing of devices."""
    return start_peer("ours").create().memory(SIZE, 1)


# Finding the library.


kinds = pytest.mark.parametrize("kind", devices.VARIABLES)


@pytest.fixture(params=("missing", "no library", "another library"))
def no_good(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file that is not there, or is neither AscendCL nor CUDA."""
    if request.param == "another library":
        return "libm.so.6"
    path = tmp_path / "library.so"
    if request.param == "no library":
        path.write_text("no library\n")
    return str(path)


def test_a_named_file_that_is_no_good_is_an_error_for_who_asks_for_ascend(start_peer: Peers, no_good: str) -> None:
    peer = start_peer("ours", KVFERRY_ASCENDCL=no_good)
    assert peer.try_create(protocol="ascend") < 0
    assert peer.logs(f"KVFERRY_ASCENDCL is {no_good}")
    assert peer.try_create(protocol="tcp") == 0


@kinds
def test_a_named_file_that_is_no_good_leaves_an_engine_for_host_memory(
    start_peer: Peers, host: Memory, kind: str, no_good: str
) -> None:
    near = start_peer("ours", **{devices.VARIABLES[kind]: no_good}).create().memory(SIZE, 2)
    moves_bytes(near, host)
    assert near.peer.logs(no_good)


@kinds
def test_a_location_without_its_library_is_refused_with_what_is_wrong_with_that(
    start_peer: Peers, kind: str, no_good: str
) -> None:
    near = start_peer("ours", **{devices.VARIABLES[kind]: no_good}).create().memory(SIZE, 2, register=False)
    assert register(near, "one", f"{kind}:0") < 0
    assert near.peer.logs(f"{devices.VARIABLES[kind]} is {no_good}")


@pytest.mark.parametrize("place,other", (("npu:0", "cuda"), ("cuda:0", "npu")))
def test_one_kind_of_device_needs_nothing_of_the_other(
    start_peer: Peers, host: Memory, place: str, other: str, no_good: str
) -> None:
    near = start_peer("ours", **{**devices.settings(), devices.VARIABLES[other]: no_good}).create()
    moves_bytes(near.memory(SIZE, 2, place=place), host)


def test_ascend_without_a_library_is_an_error_that_lists_what_was_searched(start_peer: Peers, tmp_path: Path) -> None:
    devices.need_simulator("npu")
    peer = start_peer("ours", KVFERRY_ASCENDCL="", ASCEND_HOME_PATH=str(tmp_path), ASCEND_TOOLKIT_HOME="")
    assert peer.try_create(protocol="ascend") < 0
    for place in ("libascendcl.so", "ASCEND_TOOLKIT_HOME is not set", str(tmp_path / "lib64" / "libascendcl.so")):
        assert peer.logs(place)


@pytest.mark.parametrize("variable", ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"))
def test_the_library_of_an_installed_toolkit_is_found(
    start_peer: Peers, host: Memory, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libascendcl.so").symlink_to(devices.library("npu"))
    environment = {**devices.settings(), "KVFERRY_ASCENDCL": "", variable: str(tmp_path)}
    moves_bytes(start_peer("ours", **environment).create(protocol="ascend").memory(SIZE, 2, place="npu:1"), host)


@kinds
def test_a_library_that_the_application_has_loaded_is_found(start_peer: Peers, host: Memory, kind: str) -> None:
    near = start_peer("ours", **{**devices.settings(), devices.VARIABLES[kind]: ""}).create()
    moves_bytes(near.memory(SIZE, 2, place=f"{kind}:1"), host)


# Finding the device of memory.


def register(memory: Memory, how: str, location: str) -> int:
    """Register memory in one of the two ways and return the code."""
    if how == "one":
        code = memory.peer.call("register_memory", memory.address, memory.size, location)
    else:
        code = memory.peer.call("batch_register_memory", [memory.address], [memory.size], location)
    return int(code)


@pytest.mark.parametrize("how", ("one", "batch"))
def test_an_older_library_has_the_location_believed(start_peer: Peers, host: Memory, older: Release, how: str) -> None:
    near = start_peer("ours", **older.settings).create().memory(SIZE, 2, register=False, place="npu:1")
    assert register(near, how, "npu:1") == 0
    moves_bytes(near, host)


def create_named(peer: Peer, device: int) -> Peer:
    """Create an engine under a name as SGLang gives it, and let peers find it as SGLang does."""
    settings = free_range(1)
    assert peer.try_create(f"127.0.0.1:{settings['MC_MIN_RPC_PORT']}:npu_{device}", protocol="ascend") == 0
    peer.name = f"127.0.0.1:{peer.call('get_rpc_port')}"
    return peer


def test_an_older_library_has_the_device_in_the_name_believed(start_peer: Peers, host: Memory, older: Release) -> None:
    near = create_named(start_peer("ours", **older.settings), 1)
    moves_bytes(near.memory(SIZE, 2, place="npu:1"), host)
    moves_bytes(near.memory(SIZE, 2), host)


@pytest.mark.parametrize("place", ("npu:0", "npu:1", "host"))
def test_what_the_library_says_of_memory_counts_more_than_the_name(start_peer: Peers, host: Memory, place: str) -> None:
    near = create_named(devices.start(start_peer), 1)
    moves_bytes(near.memory(SIZE, 2, place=place), host)


@pytest.mark.parametrize("kind,place", [(k, p) for k in devices.VARIABLES for p in (f"{k}:0", "host", f"{k}-pinned:0")])
def test_what_the_library_says_of_memory_counts_more_than_the_location(
    start_peer: Peers, host: Memory, kind: str, place: str
) -> None:
    devices.need_two(kind)
    near = devices.start(start_peer).create().memory(SIZE, 2, register=False, place=place)
    assert register(near, "one", f"{kind}:1") == 0
    moves_bytes(near, host)
    assert near.peer.logs(f"{kind}:1"), "that the location is wrong is logged"


@kinds
@pytest.mark.parametrize("number,reason", ((":99", "there is no "), (":x", ""), ("", "")))
def test_a_location_that_is_no_good_is_refused(start_peer: Peers, kind: str, number: str, reason: str) -> None:
    devices.need_two(kind)
    near = devices.start(start_peer).create().memory(SIZE, 2, register=False, place=f"{kind}:1")
    assert register(near, "one", f"{kind}{number}") < 0
    assert near.peer.logs(f"{reason}{kind}{number}")
    assert register(near, "one", f"{kind}:1") == 0


@pytest.mark.parametrize("place", (*devices.SECOND, "virtual:0"))
def test_a_range_that_goes_beyond_the_memory_of_a_device_is_refused(start_peer: Peers, place: str) -> None:
    near = devices.start(start_peer).create().memory(SIZE, 2, register=False, place=place)
    assert near.peer.call("register_memory", near.address, near.size + (64 << 20)) < 0
    assert near.peer.call("register_memory", near.address, near.size) == 0


@pytest.mark.parametrize("place", devices.SECOND)
def test_a_part_of_an_allocation_can_be_registered_and_no_more_is_reached(
    start_peer: Peers, host: Memory, place: str
) -> None:
    near = devices.start(start_peer).create().memory(SIZE, 2, register=False, place=place)
    start, length = 4099, 70_001
    assert near.peer.call("register_memory", near.address + start, length) == 0
    transfer(host, near, "write", [(5, start, length)])
    near.check()
    for outside in (start - 1, start + length - 99):
        result = host.peer.move(near.peer.name, "write", [[host.address, near.address + outside, 100]])
        assert result["code"] < 0
    near.check()


# The application's threads.

ASCENDCL_CURRENT = """
def make_current(device):
    runtime.call("aclrtSetDevice", device)

def current():
    index = ctypes.c_int32(-1)
    code = runtime.library.aclrtGetDevice(ctypes.byref(index))
    return index.value if code == 0 else None
"""
CUDA_CURRENT = """
contexts = {}

def make_current(device):
    runtime.on(device).__enter__()
    contexts[context()] = device

def context():
    handle = ctypes.c_void_p()
    runtime.call("cuCtxGetCurrent", ctypes.byref(handle))
    return handle.value

def current():
    return contexts.get(context(), context())
"""


@pytest.mark.parametrize("kind,functions", (("npu", ASCENDCL_CURRENT), ("cuda", CUDA_CURRENT)), ids=devices.VARIABLES)
@pytest.mark.parametrize("current", (None, 0, 1))
def test_the_threads_of_the_application_keep_their_device(kind: str, functions: str, current: int) -> None:
    """Whatever is registered, moved and ended on it, and also where it has none."""
    devices.need_two(kind)
    done = run_python(
        f"""
import ctypes
from support import runtimes

runtime = runtimes.runtime("{kind}")
{functions}
allocating = threading.Thread(target=lambda: globals().update(memory=runtime.allocate(1 << 20, 1)))
allocating.start()
allocating.join()

if {current} is not None:
    make_current({current})
assert current() == {current}
a, b = start(), start()
assert b.register_memory(memory.address, 1 << 20) == 0
assert current() == {current}
host = Mapping(1 << 20)
assert a.transfer_sync_write(name(b), host.address, memory.address, 1 << 20) == 0
assert b.transfer_sync_read(name(a), memory.address, host.address, 1 << 20) != 0, "it was not registered"
assert current() == {current}
assert b.unregister_memory(memory.address) == 0
del a, b
assert current() == {current}
""",
        60,
        **devices.settings(),
    )
    assert done.returncode == 0, done.stderr


CONTEXTS = """
import ctypes
from support import runtimes

def contexts():
    found = []
    for device in range(runtime.devices()):
        flags, active = ctypes.c_uint(), ctypes.c_int()
        runtime.call("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(active))
        found += [device] if active.value else []
    return found

runtime = runtimes.runtime("cuda")
host = Mapping(1 << 20)
a, b = start(), start()
assert contexts() == []
assert b.register_memory(host.address, 1 << 20, "*") == 0
assert a.transfer_sync_write(name(b), host.address, host.address, 1 << 20) == 0
assert contexts() == []
"""


def test_no_context_is_made_where_only_host_memory_moves() -> None:
    done = run_python(CONTEXTS, 60, **devices.settings())
    assert done.returncode == 0, done.stderr


def test_no_context_is_made_on_a_gpu_whose_memory_is_not_touched() -> None:
    """Nor is that of another kept for longer than the engine uses it."""
    devices.need_two("cuda")
    done = run_python(
        CONTEXTS
        + """
memory = runtime.allocate(1 << 20, 1)
assert contexts() == [1]
assert b.register_memory(memory.address, 1 << 20) == 0
assert a.transfer_sync_write(name(b), host.address, memory.address, 1 << 20) == 0
assert a.transfer_sync_read(name(b), host.address, memory.address, 1 << 20) == 0
assert contexts() == [1]
del a, b
assert contexts() == [1]
memory.close()
runtime.close()
assert contexts() == []
""",
        60,
        **devices.settings(),
    )
    assert done.returncode == 0, done.stderr
