"""The names, parameters and values of mooncake.engine, as Mooncake's users know them."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import kvferry
import mooncake.engine
from kvferry import simulator
from mooncake.engine import (
    Read,
    ScatterTransferCompletionStatus,
    ScatterTransferTicket,
    TransferEngine,
    TransferNotify,
    TransferOpcode,
    Write,
)
from support.inprocess import TESTS, run_python
from support.stubs import declarations

STUBS = Path(mooncake.engine.__file__).with_suffix(".pyi")
THEIRS = (TESTS / "support" / "mooncake-0.3.14.txt").read_text().splitlines()
ABSENT = (
    "SharedSegment",
    "RpcInterface",
    "CoroRPCInterface",
    "ReceivedData",
    "ReceivedTensor",
    "create_rpc_client",
    "create_rpc_server",
)
OURS = {"Access", "Integers", "TransferEngine.stats(self)", "TransferOpcode.READ", "TransferOpcode.WRITE"}
"""Names of the stubs that Mooncake's do not have."""
OUR_PARAMETER = ", *, access=None"
"""Of the methods that register memory. It is given by its name alone, so that Mooncake's parameters stay theirs."""
METHODS = {
    found[1]: found[2]
    for found in (re.fullmatch(r"TransferEngine\.(\w+)\((.*)\)", line) for line in THEIRS)
    if found and found[1] != "__init__"
}
ON_CUDA = [name for name in METHODS if name.endswith("_on_cuda")]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none, unless a test says otherwise."""
    monkeypatch.setenv("KVFERRY_CUDA", "/nonexistent.so")


@pytest.fixture
def simulated_gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_CUDA", simulator.library("cuda"))


def test_type_checkers_see_the_names_parameters_and_defaults_of_mooncakes_stubs() -> None:
    wanted = {line for line in THEIRS if re.split(r"\W", line)[0] not in ABSENT}
    assert {line.replace(OUR_PARAMETER, "") for line in declarations(STUBS)} - OURS == wanted


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_mooncakes_parameters(simulated_gpu: None, name: str) -> None:
    """Those that Mooncake takes by position alone may have other names."""
    wanted = METHODS[name].split(", ")
    found = list(inspect.signature(vars_of(TransferEngine)[name]).parameters.values())
    has = [str(p.replace(annotation=inspect.Parameter.empty)) for p in found if p.kind is not p.KEYWORD_ONLY]
    if "/" in wanted:
        assert len(has) == len(wanted) - 1
    else:
        assert has == wanted


def test_only_memory_is_registered_with_more_than_mooncake_takes(simulated_gpu: None) -> None:
    ours = {
        (name, parameter.name, parameter.default)
        for name in METHODS
        for parameter in inspect.signature(vars_of(TransferEngine)[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert ours == {("register_memory", "access", None), ("batch_register_memory", "access", None)}


def vars_of(some: type) -> dict[str, Any]:
    """The public attributes of a class, as the class or a base has them."""
    attributes = {name: value for base in reversed(some.__mro__) for name, value in vars(base).items()}
    return {name: getattr(v, "__wrapped__", v) for name, v in attributes.items() if not name.startswith("_")}


def test_there_is_no_other_method() -> None:
    assert set(vars_of(TransferEngine)) == {*METHODS, "TransferOpcode", "stats"}


@pytest.mark.parametrize("name", ("status", "drained", "drain"))
def test_a_ticket_has_mooncakes_attributes(name: str) -> None:
    assert name in vars_of(ScatterTransferTicket)


def test_the_status_of_a_scatter_transfer_has_mooncakes_names_and_values() -> None:
    members = ScatterTransferCompletionStatus.__members__
    wanted = {"COMPLETED": 0, "FAILED_DRAINED": -1, "COMPLETION_UNKNOWN": -2}
    assert {name: int(member) for name, member in members.items()} == wanted
    assert [(m.name, m.value) for m in members.values()] == list(wanted.items())
    assert str(ScatterTransferCompletionStatus.COMPLETED) == "ScatterTransferCompletionStatus.COMPLETED"
    assert ScatterTransferCompletionStatus(-1) is ScatterTransferCompletionStatus.FAILED_DRAINED


def test_opcodes_have_mooncakes_names_and_values() -> None:
    assert (int(TransferOpcode.Read), int(TransferOpcode.Write)) == (0, 1)
    assert (TransferOpcode.Read.name, TransferOpcode.Write.value) == ("Read", 1)
    assert Read < Write and Read <= Read and Write > Read and Write >= Write and Read != Write
    assert {TransferOpcode(0): 1}[Read] == 1
    for name in ("READ", "WRITE"):
        assert (
            TransferOpcode.__members__[name]
            is TransferOpcode.__members__[name.title()]
            is getattr(mooncake.engine, name.title())
        )
    assert TransferEngine.TransferOpcode is TransferOpcode
    assert (Read.name, str(Write)) == ("Read", "TransferOpcode.Write")
    assert pickle.loads(pickle.dumps(Write)) is Write


def test_a_notification_is_made_empty_or_from_both_parts_and_can_be_changed() -> None:
    assert (TransferNotify().name, TransferNotify().msg) == ("", "")
    message = TransferNotify("a", "b")
    message.msg = "c"
    assert (message.name, message.msg) == ("a", "c")
    assert TransferNotify(name="x", msg="y").msg == "y"


def test_the_flags_say_what_this_process_may_use() -> None:
    flags = {name: getattr(mooncake.engine, name) for name in dir(mooncake.engine) if name.startswith("SUPPORT_")}
    assert set(flags) == {
        f"SUPPORT_{x}" for x in ("CUDA", "EFA", "HIP", "MNNVL", "MULTI_PROTOCOL", "MUSA", "INTRA_NVLINK")
    }
    assert all(flag is False for flag in flags.values())


def test_without_a_gpu_there_are_no_methods_of_builds_with_cuda(fresh_engine: TransferEngine) -> None:
    assert not any(hasattr(fresh_engine, name) for name in ON_CUDA)


def test_with_a_gpu_there_are_those_methods_and_the_flag_says_so(
    simulated_gpu: None, fresh_engine: TransferEngine
) -> None:
    assert all(hasattr(fresh_engine, name) for name in ON_CUDA)
    assert mooncake.engine.SUPPORT_CUDA is True


@pytest.mark.parametrize("name", ABSENT)
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
import kvferry, kvferry._command.main, mooncake.engine
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
