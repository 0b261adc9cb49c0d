"""kvferry.gpu, on simulated GPUs, and the number of GPUs that it finds on a machine."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from kvferry import simulator
from kvferry.gpu import CUDA, GpuError
from support.inprocess import run_python


@pytest.fixture
def cuda() -> CUDA:
    return CUDA(simulator.library("cuda"))


def current(cuda: CUDA) -> int | None:
    """The handle of this thread's context."""
    context = ctypes.c_void_p()
    cuda.call("cuCtxGetCurrent", ctypes.byref(context))
    return context.value


def test_a_gpu_has_a_name(cuda: CUDA) -> None:
    assert cuda.name(0)


def test_an_error_has_cudas_name_for_it(cuda: CUDA) -> None:
    with pytest.raises(GpuError, match=r"^cuDeviceGet of .* failed with 101, CUDA_ERROR_INVALID_DEVICE: \w+"):
        cuda.allocate(1, device=99)
    with pytest.raises(GpuError, match=r"^cuMemAlloc_v2 of .* failed with 2, CUDA_ERROR_OUT_OF_MEMORY: \w+"):
        cuda.allocate(1 << 62)
    with pytest.raises(GpuError, match=r"^cuInit of .* failed with 1, CUDA_ERROR_INVALID_VALUE: \w+"):
        cuda.call("cuInit", 7)


def test_a_thread_keeps_its_context_also_where_a_call_fails(cuda: CUDA) -> None:
    assert current(cuda) is None
    memory = cuda.allocate(1000, 0)
    memory.write(b"KV cache")
    assert current(cuda) is None
    with cuda.on(1):
        other = current(cuda)
        assert other is not None
        memory.read(8)
        with pytest.raises(GpuError):
            cuda.allocate(1 << 62)
        memory.close()
        assert current(cuda) == other
    assert current(cuda) is None


def test_a_missing_library_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_CUDA", "/nonexistent.so")
    with pytest.raises(GpuError, match=r"^CUDA's driver cannot be opened: /nonexistent\.so: "):
        CUDA()


def test_another_library_is_not_taken_for_cuda() -> None:
    with pytest.raises(GpuError, match=r"^libc\.so\.6 is not CUDA's driver: .*cuInit"):
        CUDA("libc.so.6")


# What the machine has. These run in processes of their own, in which no library is loaded yet.


def asked(program: str, **settings: str) -> list[str]:
    """The words that a program prints which has the module, and loaded(): whether CUDA's library is in the process."""
    done = run_python(
        f"""
from pathlib import Path
from kvferry import gpu, simulator

def loaded():
    return "libcuda" in open("/proc/self/maps").read()

{program}
""",
        30,
        **{"KVFERRY_CUDA": "", **settings},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def nodes(tmp_path: Path) -> str:
    """A statement by which the kernel's driver shows four GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia5", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).write_text("")
    return f"gpu.NODES = Path({str(tmp_path)!r})"


def test_a_named_library_tells_how_many_gpus_there_are_and_makes_no_context() -> None:
    program = """
print(gpu.visible_devices(), gpu.available())
from kvferry.gpu import CUDA
import ctypes
state = ctypes.c_int()
CUDA().call("cuDevicePrimaryCtxGetState", 0, ctypes.byref(ctypes.c_uint()), ctypes.byref(state))
print(state.value)
"""
    named = simulator.library("cuda")
    assert asked(program, KVFERRY_CUDA=named, KVFERRY_SIM_DEVICES="3") == ["3", "True", "0"]


@pytest.mark.parametrize("named", ["/nonexistent.so", "libc.so.6"])
def test_a_named_library_that_is_no_good_has_no_gpus(nodes: str, named: str) -> None:
    assert asked(f"{nodes}; print(gpu.visible_devices(), gpu.available())", KVFERRY_CUDA=named) == ["0", "False"]


def test_the_nodes_of_the_kernels_driver_are_counted_and_cuda_is_left_alone(nodes: str) -> None:
    assert asked(f"{nodes}; print(gpu.visible_devices(), loaded())") == ["4", "False"]


@pytest.mark.parametrize(
    ("chosen", "number"),
    [
        ("0,2", 2),
        ("3", 1),
        ("0, 1", 2),
        ("", 0),
        ("-1", 0),
        ("0,1,-1,2", 2),
        ("1,4,0", 1),
        ("0,1,0", 0),
        ("GPU-8932f937-d72c", 1),
        ("GPU-8932f937-d72c,GPU-7a0b5c11", 2),
        ("MIG-GPU-8932f937/1/0", 1),
        ("none", 0),
    ],
)
def test_cuda_visible_devices_leaves_gpus_out(nodes: str, chosen: str, number: int) -> None:
    assert asked(f"{nodes}; print(gpu.visible_devices())", CUDA_VISIBLE_DEVICES=chosen) == [str(number)]


def test_a_gpu_that_this_process_may_not_open_is_not_counted(nodes: str) -> None:
    refused = "os.access = lambda path, mode: path.name != 'nvidia1'"  # root may open whatever there is
    assert asked(f"{nodes}; {refused}; print(gpu.visible_devices())") == ["3"]


def test_cuda_that_the_process_has_initialized_is_asked(nodes: str) -> None:
    """It knows best, as with CUDA_VISIBLE_DEVICES that was changed since."""
    program = f"""
{nodes}
cuda = gpu.CUDA(simulator.library("cuda"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
print(gpu.visible_devices(), gpu.available())
"""
    assert asked(program, KVFERRY_SIM_DEVICES="1") == ["1", "True"]


def test_where_the_kernel_shows_nothing_cuda_is_asked(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").symlink_to(simulator.library("cuda"))
    program = f"gpu.NODES = Path({str(tmp_path)!r}); print(gpu.visible_devices(), gpu.available())"
    assert asked(program, LD_LIBRARY_PATH=str(tmp_path)) == ["2", "True"]


def test_without_a_library_there_is_no_gpu_to_use(nodes: str, tmp_path: Path) -> None:
    program = f"""
{nodes}
gpu.FILE = "libcuda-nonexistent.so.1"
print(gpu.available())
gpu.NODES = Path("/nonexistent")
print(gpu.visible_devices(), gpu.available())
"""
    assert asked(program) == ["False", "0", "False"]


def test_the_module_loads_nothing() -> None:
    assert asked("import mooncake.engine; print(loaded())") == ["False"]
