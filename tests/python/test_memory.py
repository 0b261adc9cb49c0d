"""Registered memory, the managed buffers, and bytes put into memory and taken from it."""

from __future__ import annotations

import array
import gc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvferry._bindings import KVFERRY_ERR_IN_USE
from kvferry._memory import LARGEST, SMALLEST, ManagedMemory, block_size
from mooncake.engine import TransferEngine
from support.ids import shown
from support.inprocess import HOST, Node
from support.memory import transfer
from support.peers import Peers

MIB = 1 << 20
UNMAPPED = 4096


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


@pytest.mark.parametrize(
    ("length", "size"),
    [(0, SMALLEST), (1, SMALLEST), (8192, 8192), (8193, 16384), (LARGEST, LARGEST), (LARGEST + 1, LARGEST + 4096)],
)
def test_a_block_comes_from_the_smallest_class_that_holds_it(length: int, size: int) -> None:
    assert block_size(length) == size


class Allocator(RuleBasedStateMachine):
    """Random allocations and frees against a plain model: no two blocks overlap, all lie in registered memory."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = ManagedMemory()
        self.blocks: dict[int, int] = {}
        self.registered: dict[int, int] = {}
        self.refusing = False

    def register(self, address: int, length: int) -> int:
        if self.refusing:
            return -200
        self.registered[address] = length
        return 0

    def unregister(self, address: int) -> int:
        del self.registered[address]
        return 0

    @rule(length=st.one_of(st.integers(0, 70_000), st.sampled_from([MIB, 3 * MIB, LARGEST, LARGEST + 1])))
    def allocate(self, length: int) -> None:
        before = len(self.registered)
        address = self.memory.allocate(length, self.register)
        if address == 0:
            assert self.refusing
            return
        assert address not in self.blocks
        assert len(self.registered) <= before + 1
        self.blocks[address] = length

    @rule(refusing=st.booleans())
    def refuse(self, refusing: bool) -> None:
        self.refusing = refusing

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.blocks)))
        del self.blocks[address]
        assert self.memory.free(address, self.unregister)
        assert not self.memory.free(address, self.unregister)

    @rule(offset=st.integers(1, 4095))
    def free_a_foreign_address(self, offset: int) -> None:
        for address in self.blocks:
            assert not self.memory.free(address + offset, self.unregister)

    @invariant()
    def blocks_are_apart_and_registered(self) -> None:
        end = 0
        for address, length in sorted(self.blocks.items()):
            assert address >= end
            end = address + max(length, 1)
            assert any(a <= address and end <= a + n for a, n in self.registered.items())


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_large_block_that_is_still_in_use_stays_mapped_when_it_is_freed() -> None:
    """What is stuck would write into whatever the process maps there next."""
    memory = ManagedMemory()
    address = memory.allocate(LARGEST + 1, lambda address, length: 0)
    before = mapped()
    assert memory.free(address, lambda address: KVFERRY_ERR_IN_USE)
    assert mapped() >= before
    assert memory.register_all(lambda address, length: -1) == 0, "it is registered with no other engine"
    again = memory.allocate(LARGEST + 1, lambda address, length: 0)
    assert again != address
    assert memory.free(again, lambda address: 0)
    assert mapped() < before + LARGEST


@pytest.mark.each_path
def test_managed_buffers_can_be_written_by_a_peer(near: Node, far: Node) -> None:
    near.put(b"a" * 4096)
    for length in (0, 1, 4096, 300 * MIB):
        address = far.engine.allocate_managed_buffer(length)
        assert address % 4096 == 0
        sent = min(length, 4096)
        assert near.engine.transfer_sync_write(far.name, near.address, address, sent) == 0
        assert far.engine.read_bytes_from_buffer(address, sent) == b"a" * sent
        assert far.engine.free_managed_buffer(address, length) == 0


def test_an_address_that_is_no_managed_buffer_in_use_is_not_freed(near: Node) -> None:
    address = near.engine.allocate_managed_buffer(8192)
    for foreign in (0, near.address, address + 8192, address + 1):
        assert near.engine.free_managed_buffer(foreign, 8192) < 0
    assert near.engine.free_managed_buffer(address, 8192) == 0
    assert near.engine.free_managed_buffer(address, 8192) < 0


def test_more_memory_than_there_is_gives_no_address(near: Node) -> None:
    for length in (1 << 46, 2**63, 2**64 - 1):
        assert near.engine.allocate_managed_buffer(length) == 0


def test_no_memory_is_taken_that_was_not_asked_for() -> None:
    node = Node()
    before_mapped, before_resident = mapped(), resident()
    assert node.engine.allocate_managed_buffer(8192)
    assert mapped() - before_mapped < 8 * MIB
    assert node.engine.allocate_managed_buffer(256 * MIB)
    assert resident() - before_resident < 8 * MIB


def test_managed_memory_goes_with_its_engine() -> None:
    node = Node()
    gc.collect()
    before = mapped()
    assert node.engine.allocate_managed_buffer(256 * MIB)
    assert node.engine.allocate_managed_buffer(300 * MIB)
    assert mapped() - before >= (556 - 64) * MIB  # threads of former tests may end meanwhile, and their stacks go
    del node.engine
    gc.collect()
    assert mapped() - before < 64 * MIB


@pytest.mark.each_path
def test_a_large_managed_buffer_is_given_back_when_it_is_freed(near: Node, far: Node) -> None:
    before = mapped()
    address = far.engine.allocate_managed_buffer(300 * MIB)
    assert far.engine.free_managed_buffer(address, 300 * MIB) == 0
    assert mapped() - before < 64 * MIB
    assert near.engine.transfer_sync_write(far.name, near.address, address, 1) < 0


def test_memory_is_registered_once_and_unregistered_by_its_base(far: Node) -> None:
    engine = TransferEngine()
    assert engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
    address = far.address
    assert engine.register_memory(address, 8192) == 0
    assert engine.register_memory(address + 4096, 8192) == -7
    assert engine.unregister_memory(address + 1) < 0
    assert engine.unregister_memory(address) == 0
    assert engine.unregister_memory(address) < 0
    assert engine.register_memory(address, 0) == -1
    assert engine.register_memory(0, 1) == -1
    assert engine.register_memory(2**64 - 1, 2) == -1
    assert engine.register_memory(address, 8192, "cpu:0") == 0
    assert engine.unregister_memory(address) == 0


def test_a_list_of_ranges_is_registered_as_a_whole_or_not_at_all(far: Node) -> None:
    engine = TransferEngine()
    assert engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0
    first, second = far.address, far.address + 8192
    assert engine.batch_register_memory([first, second], [4096, 4096]) == 0
    assert engine.batch_register_memory([second + 8192, first], [4096, 4096]) == -7
    assert engine.register_memory(second + 8192, 4096) == 0, "a part of a failed list stayed registered"
    assert engine.batch_unregister_memory([first, first + 1, second]) < 0
    assert engine.batch_register_memory((first, second), range(1, 3)) == 0
    assert engine.batch_register_memory([first], [1, 2]) == -1
    assert engine.batch_unregister_memory(array.array("Q", [first, second])) == 0
    assert engine.batch_register_memory([], []) == 0
    assert engine.batch_unregister_memory([]) == 0


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("h\u00e9", "h\u00e9".encode()),
        (b"bytes\0more", b"bytes\0more"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (array.array("H", [1, 2]), b"\x01\0\x02\0"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_bytes_of_any_kind_of_source_are_put_into_memory(near: Node, source: Any, data: bytes) -> None:
    near.put(b"." * 32)
    engine = near.engine
    assert engine.write_bytes_to_buffer(near.address, source, len(data)) == 0
    assert near.get(len(data) + 1) == data + b"."
    assert engine.write_bytes_to_buffer(near.address + 16, source, 1) == 0
    assert near.get(2, 16) == data[:1] + b"."
    assert engine.write_bytes_to_buffer(near.address, source, len(data) + 1) == -1
    assert engine.write_bytes_to_buffer(near.address, source, 0) == 0
    assert engine.read_bytes_from_buffer(near.address, len(data)) == data


@pytest.mark.parametrize("source", [None, 5, [1], object()], ids=shown)
def test_a_source_without_bytes_is_a_type_error(near: Node, source: Any) -> None:
    with pytest.raises(TypeError):
        near.engine.write_bytes_to_buffer(near.address, source, 0)


def test_an_address_that_is_not_mapped_is_a_failure_and_no_crash(near: Node) -> None:
    engine = near.engine
    assert engine.write_bytes_to_buffer(UNMAPPED, b"x" * 100_000, 100_000) == -1
    assert engine.read_bytes_from_buffer(UNMAPPED, 1) == b""
    assert engine.read_bytes_from_buffer(near.address, 2**62) == b""
    assert engine.read_bytes_from_buffer(near.address, 2**64 - 1) == b""
    assert engine.read_bytes_from_buffer(UNMAPPED, 0) == b""


@pytest.mark.each_path
def test_memory_that_is_not_remote_accessible_serves_only_the_engines_own_transfers(
    start_peer: Peers,
) -> None:
    ours, peer = (start_peer().create() for _ in range(2))
    theirs = peer.memory(4096, 1)
    hidden = ours.memory(4096, 2, register=False)
    assert ours.call("register_memory", hidden.address, hidden.size, "*", False) == 0
    assert peer.call("get_first_buffer_address", ours.name) == 0
    open_to_peers = ours.memory(4096, 3)
    for opcode in ("read", "write"):
        block = [[theirs.address, hidden.address, 64]]
        assert peer.move(ours.name, opcode, block)["code"] == -1
        block = [[theirs.address, open_to_peers.address, 64]]
        assert peer.move(ours.name, opcode, block)["code"] == 0
    assert peer.call("get_first_buffer_address", ours.name) == open_to_peers.address
    hidden.check()
    theirs.adopt()
    for opcode in ("read", "write"):
        transfer(hidden, theirs, opcode, [(100, 200, 1000)])
        hidden.check()
    assert ours.call("unregister_memory", hidden.address) == 0


@pytest.mark.parametrize(
    ("named", "error", "reason"),
    [
        ({"access": "READ"}, ValueError, "one of 'none', 'read', 'write', 'read-write', not 'READ'"),
        ({"access": ""}, ValueError, "one of"),
        ({"access": 1}, TypeError, "access must be a str, not int"),
        ({"access": True}, TypeError, "access must be a str, not bool"),
        ({"access": "read", "remote_accessible": False}, ValueError, "only one may say it"),
        ({"access": "none", "remote_accessible": False}, ValueError, "only one may say it"),
    ],
    ids=shown,
)
def test_an_access_that_does_not_exist_registers_nothing(
    near: Node, named: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        near.engine.register_memory(near.address, 1, **named)
    if "remote_accessible" not in named:
        with pytest.raises(error, match=reason):
            near.engine.batch_register_memory([near.address], [1], **named)


@pytest.mark.parametrize("bad", ("False", b"", []), ids=shown)
def test_remote_accessible_takes_only_a_bool(near: Node, bad: Any) -> None:
    with pytest.raises(TypeError):
        near.engine.register_memory(near.address, 1, "*", bad)
