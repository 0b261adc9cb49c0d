"""An engine uses the primary contexts of GPUs, only of those whose memory is registered, and no thread of the
application notices."""

from __future__ import annotations

from typing import Optional

import pytest

from support import machine
from support.inprocess import run_python

LIMIT = 120.0  # seconds

BEGIN = """
import ctypes, gc
from kvferry.gpu import CUDA

cuda = CUDA()

def current():
    context = ctypes.c_void_p()
    cuda.call("cuCtxGetCurrent", ctypes.byref(context))
    return context.value

def active(index):
    device, flags, state = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    cuda.call("cuDeviceGet", ctypes.byref(device), index)
    cuda.call("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(state))
    return bool(state.value)

def moves(address, length):
    # Each call gives what follows a chance to look.
    a, b = start(), start()
    yield "two engines"
    assert b.register_memory(address, length) == 0
    yield "registered"
    host = Mapping(length)
    host.buffer[:] = bytes(range(256)) * (length // 256)
    assert a.register_memory(host.address, length) == 0
    assert a.transfer_sync_write(name(b), host.address, address, length) == 0
    yield "written"
    assert a.transfer_sync_read(name(b), host.address, address, length) == 0
    yield "read"
    assert b.transfer_sync_write(name(a), address, host.address, length) == 0
    yield "sent"
    assert b.transfer_sync_write(name(a), address, host.address + length, length) != 0
    yield "failed"
    assert b.unregister_memory(address) == 0
    yield "unregistered"
    del a, b
    gc.collect()
    yield "ended"
"""


def run(program: str) -> None:
    done = run_python(BEGIN + program, LIMIT, **machine.settings())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("current", (None, 0, 1))
def test_threads_keep_the_context_that_they_had(current: Optional[int]) -> None:
    """Whether it is that of the GPU whose memory is moved, of another one, or none."""
    machine.need_gpus((current or 0) + 1)
    run(f"""
memory = cuda.allocate(1 << 20, 0)
if {current} is not None:
    cuda.call("cuCtxSetCurrent", cuda._context({current}))
    assert current() is not None
mine = current()
for step in moves(memory.address, memory.size):
    assert current() == mine, step
""")


def test_a_gpu_whose_memory_is_not_used_gets_no_context() -> None:
    """As of a process that uses the second GPU alone: it does not appear on the first one."""
    machine.need_gpus(2)
    run("""
memory = cuda.allocate(1 << 20, 1)
for step in moves(memory.address, memory.size):
    assert active(1) and not active(0), step
""")


def test_host_memory_makes_no_context() -> None:
    run("""
plain = Mapping(1 << 20)
for step in moves(plain.address, plain.length):
    assert not active(0), step
""")


def test_an_engine_that_ended_has_let_go_of_the_context() -> None:
    run("""
memory = cuda.allocate(1 << 20, 0)
for step in moves(memory.address, memory.size):
    assert active(0), step
memory.close()
cuda.close()
assert not active(0)
""")


@pytest.mark.parametrize("device", (0, 1))
def test_pytorch_keeps_its_current_device(device: int) -> None:
    machine.need_torch()
    machine.need_gpus(device + 1)
    run(f"""
import torch
torch.cuda.set_device({device})
memory = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda:0")
stream = torch.cuda.current_stream()
torch.cuda.synchronize("cuda:0")
for step in moves(memory.data_ptr(), memory.numel()):
    assert torch.cuda.current_device() == {device} and torch.cuda.current_stream() == stream, step
    assert torch.ones(3, device="cuda").sum().item() == 3
""")
