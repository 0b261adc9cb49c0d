"""The names, parameters and values of mooncake.engine, as Mooncake's users know them."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
from pathlib import Path

import pytest

import kvferry
import mooncake.engine
from kvferry import simulator
from mooncake.engine import Read, TransferEngine, TransferNotify, TransferOpcode, Write
from support.inprocess import run_python

MANY = "target_hostname, buffers, peer_buffer_addresses, lengths"
ONE = "target_hostname, buffer, peer_buffer_address, length"
HINT = "transport_hint=''"
SIGNATURES = {
    "initialize": "local_hostname, metadata_server, protocol, device_name",
    "initialize_ext": "local_hostname, metadata_server, protocol, device_name, metadata_type",
    "get_rpc_port": "",
    "allocate_managed_buffer": "length",
    "free_managed_buffer": "buffer_addr, length",
    "transfer_sync_write": f"{ONE}, {HINT}",
    "transfer_sync_read": f"{ONE}, {HINT}",
    "batch_transfer_sync_write": f"{MANY}, {HINT}",
    "batch_transfer_sync_read": f"{MANY}, {HINT}",
    "batch_transfer_async_write": f"{MANY}, {HINT}",
    "batch_transfer_async_read": f"{MANY}, {HINT}",
    "transfer_sync": f"{ONE}, opcode, notify=None, {HINT}",
    "batch_transfer_sync": f"{MANY}, opcode, notify=None, {HINT}",
    "batch_transfer_async": f"{MANY}, opcode, {HINT}",
    "get_batch_transfer_status": "batch_ids",
    "transfer_submit_write": f"{ONE}, {HINT}",
    "transfer_check_status": "batch_id",
    "write_bytes_to_buffer": "dest_address, src_ptr, length",
    "read_bytes_from_buffer": "source_address, length",
    "register_memory": "buffer_addr, capacity, location='*'",
    "unregister_memory": "buffer_addr",
    "batch_register_memory": "buffer_addresses, capacities, location='*'",
    "batch_unregister_memory": "buffer_addresses",
    "get_local_topology": "device_name=None",
    "get_first_buffer_address": "segment_name",
    "warmup_efa_segment": "segment_name",
    "get_notifies": "",
    "send_probe": "peer_server_name",
    "get_engine": "",
    "get_engine_ptr": "",
}
STREAM = "stream_ptr=0"
ON_CUDA = {
    "transfer_write_on_cuda": f"{ONE}, {STREAM}, {HINT}",
    "transfer_read_on_cuda": f"{ONE}, {STREAM}, {HINT}",
    "batch_transfer_write_on_cuda": f"{MANY}, {STREAM}, {HINT}",
    "batch_transfer_read_on_cuda": f"{MANY}, {STREAM}, {HINT}",
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none, unless a test says otherwise."""
    monkeypatch.setenv("KVFERRY_CUDA", "/nonexistent.so")


@pytest.fixture
def simulated_gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_CUDA", simulator.library("cuda"))


def parameters(name: str) -> str:
    found = list(inspect.signature(getattr(TransferEngine, name)).parameters.values())[1:]
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in found)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_method_has_mooncakes_parameters(name: str) -> None:
    assert parameters(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", ON_CUDA)
def test_a_method_of_builds_with_cuda_has_mooncakes_parameters(simulated_gpu: None, name: str) -> None:
    assert parameters(name) == ON_CUDA[name]


def test_there_is_no_other_method() -> None:
    public = {name for name in vars(TransferEngine) if not name.startswith("_")}
    assert public == {*SIGNATURES, *ON_CUDA, "TransferOpcode"}


def test_opcodes_have_mooncakes_names_and_values() -> None:
    assert (TransferOpcode.Read, TransferOpcode.Write) == (0, 1)
    for name in ("READ", "WRITE"):
        assert TransferOpcode[name] is TransferOpcode[name.title()] is getattr(mooncake.engine, name.title())
    assert TransferEngine.TransferOpcode is TransferOpcode
    assert (Read.name, str(Write)) == ("Read", "TransferOpcode.Write")
    assert pickle.loads(pickle.dumps(Write)) is Write


def test_a_notification_is_made_empty_or_from_both_parts_and_can_be_changed() -> None:
    assert (TransferNotify().name, TransferNotify().msg) == ("", "")
    message = TransferNotify("a", "b")
    message.msg = "c"
    assert (message.name, message.msg) == ("a", "c")
    assert TransferNotify(name="x", msg="y").msg == "y"


def test_the_flags_say_what_there_is() -> None:
    flags = {name: getattr(mooncake.engine, name) for name in dir(mooncake.engine) if name.startswith("SUPPORT_")}
    assert set(flags) == {f"SUPPORT_{x}" for x in ("CUDA", "EFA", "HIP", "MNNVL", "MUSA", "INTRA_NVLINK")}
    assert all(flag is False for flag in flags.values())


def test_without_a_gpu_there_are_no_methods_of_builds_with_cuda(fresh_engine: TransferEngine) -> None:
    assert not any(hasattr(fresh_engine, name) for name in ON_CUDA)


def test_with_a_gpu_there_are_those_methods_and_the_flag_says_so(
    simulated_gpu: None, fresh_engine: TransferEngine
) -> None:
    assert all(hasattr(fresh_engine, name) for name in ON_CUDA)
    assert mooncake.engine.SUPPORT_CUDA is True


@pytest.mark.parametrize(
    "name",
    [
        "SharedSegment",
        "RpcInterface",
        "CoroRPCInterface",
        "ReceivedData",
        "ReceivedTensor",
        "create_rpc_client",
        "create_rpc_server",
    ],
)
def test_a_name_of_mooncakes_that_is_absent_says_so(name: str) -> None:
    assert not hasattr(mooncake.engine, name)
    with pytest.raises(AttributeError, match=f"{name} is not part of kvferry"):
        getattr(mooncake.engine, name)


def test_mooncake_is_a_namespace_package_that_has_no_store() -> None:
    found = importlib.util.find_spec("mooncake")
    assert found is not None and found.origin is None
    assert importlib.util.find_spec("mooncake.store") is None


def test_importing_loads_no_native_library_and_starts_no_thread() -> None:
    done = run_python("""
import kvferry, kvferry._cli, mooncake.engine
maps = open("/proc/self/maps").read()
assert not any(library in maps for library in ("libtransfer_engine", "libcuda", "libascendcl"))
assert len(os.listdir("/proc/self/task")) == 1
mooncake.engine.TransferEngine()
assert "libtransfer_engine" in open("/proc/self/maps").read()
""")
    assert done.returncode == 0, done.stderr


def test_submodules_that_another_distribution_brings_still_import(tmp_path: Path) -> None:
    other = tmp_path / "mooncake"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (other / "engine.py").write_text("raise SystemExit('the wrong module')")
    (other / "buffer_pool.py").write_text("from mooncake.engine import TransferEngine")
    done = run_python(f"sys.path.append({str(tmp_path)!r}); import mooncake.engine, mooncake.buffer_pool")
    assert done.returncode == 0, done.stderr


def test_the_packages_tell_type_checkers_that_they_are_typed() -> None:
    for package in (kvferry, mooncake.engine):
        assert (Path(package.__path__[0]) / "py.typed").exists()
