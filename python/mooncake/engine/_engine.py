"""TransferEngine: Mooncake's manners, which are defaults, failure values and timeouts, over kvferry's engine."""

from __future__ import annotations

import operator
import os
import struct
import threading
import time
import weakref
from typing import Any, Callable, SupportsIndex

from kvferry import _log
from kvferry._arrays import Array, Blocks, Pages
from kvferry._bindings import KVFERRY_ERR_FAILED, KVFERRY_ERR_TIMED_OUT
from kvferry._engine import Engine, EngineError
from kvferry._ffi import Integers, U64Array, address_of, flag, pack_u64, u64, u64_array
from kvferry._library import LibraryError, load
from kvferry._memory import ManagedMemory
from kvferry._messages import notification
from kvferry._scatter import ScatterTransfer
from kvferry._topology import topology
from kvferry._waiting import Seconds, given_up
from mooncake.engine import _notices
from mooncake.engine._arrays import GIB, READ, WRITE, ArrayTransfers, time_for
from mooncake.engine._cuda import OnlyWithCuda
from mooncake.engine._scatter import ScatterTransfers
from mooncake.engine._types import TransferNotify, TransferOpcode

P2P = "P2PHANDSHAKE"
USUAL_PROTOCOL = "rdma"  # what vLLM and SGLang ask for where nobody has chosen one
SHORTEST_START = 5.0  # seconds that initialize() may take, however short ASCEND_TRANSFER_TIMEOUT is
PEER_UNREACHABLE = -102  # what send_probe() returns

_strange_protocols: set[str] = set()  # that the log has named


class TransferEngine(ArrayTransfers, ScatterTransfers):
    """An engine: memory that peers may read and write, and transfers between it and theirs.

    It does nothing until initialize(). Dropping the last reference ends it within about a second, with what is under
    way; within some seconds where something is stuck in a system call or on a device. Addresses and lengths are
    integers from 0 to 2^64-1, lists of them any sequence; anything else is a TypeError.
    The memory is the caller's. A target is a peer's name, host:port.

    Synchronous calls give up MC_TRANSFER_TIMEOUT seconds, as it was when the object was made, and 1 s for each GiB
    after their start. Whatever a call returned or raised, it does not touch its buffers afterwards, unless an error in
    the log says that something which is stuck may use them still.
    """

    TransferOpcode = TransferOpcode

    def __init__(self) -> None:
        """Load the native library, if this is the process's first engine. LibraryError says why it cannot be loaded."""
        load()
        _notices.serving()
        self._engine: Engine | None = None
        self._memory = ManagedMemory()
        self._initializing = threading.Lock()
        self._timeout = _transfer_timeout()
        self._pid = os.getpid()
        _engines.add(self)

    # Life cycle

    def initialize(self, local_hostname: str, metadata_server: str, protocol: str, device_name: str | None) -> int:
        """Start the engine under a name; 0 or -1.

        metadata_server is P2PHANDSHAKE or a connection string, by default of etcd. protocol "tcp" and "ascend" mean
        themselves, any other the best there is; "ascend" fails where AscendCL, the library of the NPUs, is not found.
        device_name is not needed. A second call replaces the engine: its transfers are ended, peers are forgotten, and
        only managed buffers are registered again.
        """
        return self.initialize_ext(local_hostname, metadata_server, protocol, device_name, "etcd")

    def initialize_ext(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str,
        device_name: str | None,
        metadata_type: str,
    ) -> int:
        """initialize() with the scheme of a connection string that has none given apart."""
        if not all(isinstance(a, str) for a in (local_hostname, metadata_server, protocol, metadata_type)):
            raise TypeError("local_hostname, metadata_server, protocol and metadata_type must be str")
        if protocol == "xgmi":
            _log.error("initialize: the protocol 'xgmi' is not supported")
            return -1
        if metadata_server != P2P and "://" not in metadata_server:
            metadata_server = f"{metadata_type}://{metadata_server}"
        with self._initializing:
            return self._replace_engine(local_hostname, metadata_server, _transport(protocol))

    def _replace_engine(self, name: str, metadata: str, transport: str | None) -> int:
        previous, self._engine = self._engine, None
        if previous is not None:
            previous.close()
        try:
            engine = Engine(name, metadata, transport, self._memory, max(self._timeout, SHORTEST_START))
        except (EngineError, ValueError) as e:
            _log.error("initialize: the engine %r cannot be made: %s", name, e)  # metadata may have a password in it
            return -1
        if self._memory.register_all(engine.register) != 0:
            _log.error("initialize: managed buffers cannot be registered again: %s", engine.last_error())
            engine.close()
            return -1
        self._engine = engine
        return 0

    def get_rpc_port(self) -> int:
        """The port under which peers find this engine; -1 before initialize()."""
        engine = self._engine
        return _not_initialized("get_rpc_port") if engine is None else engine.rpc_port()

    def get_engine(self) -> Engine | None:
        """The inner engine, or None before initialize(). It ends with this object, or with the next initialize().

        It is no object of Mooncake's: mooncake.store takes None in its place, and makes an engine of its own.
        """
        _notices.handing_out()
        return self._engine

    def get_engine_ptr(self) -> int:
        """The inner engine's handle in kvferry's C interface, or 0. It is no pointer to an object of Mooncake's, and
        must not be given to native code that takes it for one."""
        engine = self._engine
        return 0 if engine is None else engine.handle

    def get_local_topology(self, device_name: str | None = None) -> str:
        """JSON: memory node, or GPU that this process may use -> [preferred RDMA devices, available RDMA devices]. The
        lists are empty, unless the file that MC_CUSTOM_TOPO_JSON names says otherwise. Needs no initialize()."""
        return topology()

    # Memory

    def register_memory(
        self,
        buffer_addr: SupportsIndex,
        capacity: SupportsIndex,
        location: str = "*",
        remote_accessible: bool = True,
    ) -> int:
        """Let peers read and write memory, which must stay mapped until it is unregistered; 0 or negative.

        With remote_accessible False peers are not told of it, and what they ask of it is refused: it is for transfers
        that this engine starts. It may be host memory or an NPU's, which is recognised by its address where AscendCL
        can tell, and else by the location "npu:N".
        """
        address, length = u64(buffer_addr, "buffer_addr"), u64(capacity, "capacity")
        remote = flag(remote_accessible, "remote_accessible")
        engine = self._engine
        if engine is None:
            return _not_initialized("register_memory")
        try:
            return _logged(engine, engine.register(address, length, location, remote), "register_memory")
        except ValueError as e:
            return _refused("register_memory", e)

    def unregister_memory(self, buffer_addr: SupportsIndex) -> int:
        """End the registration that starts at buffer_addr; 0 or negative.

        -4 (KVFERRY_ERR_IN_USE) when something that is stuck, in a system call or on a device, may use the memory still,
        which must be left as it is: the log says what. Another call waits for that again, and gives 0 when it
        has ended.
        """
        address = u64(buffer_addr, "buffer_addr")
        engine = self._engine
        if engine is None:
            return _not_initialized("unregister_memory")
        return _logged(engine, engine.unregister(address), "unregister_memory")

    def batch_register_memory(self, buffer_addresses: Integers, capacities: Integers, location: str = "*") -> int:
        """Register all of the ranges or none; 0 or negative."""
        addresses = u64_array(buffer_addresses, "buffer_addresses")
        lengths = u64_array(capacities, "capacities")
        engine = self._engine
        if engine is None:
            return _not_initialized("batch_register_memory")
        if addresses.length != lengths.length:
            reason = f"{addresses.length} addresses and {lengths.length} capacities do not match"
            return _refused("batch_register_memory", reason)
        try:
            return _logged(engine, engine.register_batch(addresses, lengths, location), "batch_register_memory")
        except ValueError as e:
            return _refused("batch_register_memory", e)

    def batch_unregister_memory(self, buffer_addresses: Integers) -> int:
        """End the registrations that start at these addresses, as many as there are; 0, -4 as unregister_memory() if
        one is still in use, or the first error."""
        addresses = u64_array(buffer_addresses, "buffer_addresses")
        engine = self._engine
        if engine is None:
            return _not_initialized("batch_unregister_memory")
        return _logged(engine, engine.unregister_batch(addresses), "batch_unregister_memory")

    def allocate_managed_buffer(self, length: SupportsIndex) -> int:
        """The address of registered memory of at least length bytes, the engine's own; 0 on failure. It is freed by
        free_managed_buffer(), or with the engine."""
        size = u64(length, "length")
        engine = self._engine
        if engine is None:
            _not_initialized("allocate_managed_buffer")
            return 0
        return self._memory.allocate(size, engine.register)

    def free_managed_buffer(self, buffer_addr: SupportsIndex, length: SupportsIndex) -> int:
        """Take back what allocate_managed_buffer() returned; 0, or negative for any other address."""
        address = u64(buffer_addr, "buffer_addr")
        u64(length, "length")
        engine = self._engine
        if engine is None:
            return _not_initialized("free_managed_buffer")
        if not self._memory.free(address, engine.unregister):
            return _refused("free_managed_buffer", f"{address:#x} is not the address of a managed buffer in use")
        return 0

    def write_bytes_to_buffer(self, dest_address: SupportsIndex, src_ptr: Any, length: SupportsIndex) -> int:
        """Copy the first length bytes of a str (as UTF-8) or of any buffer to an address; 0, or -1 when there are not
        so many or the address is not mapped."""
        address, size = u64(dest_address, "dest_address"), u64(length, "length")
        source = memoryview(src_ptr.encode() if isinstance(src_ptr, str) else src_ptr).cast("B")
        engine = self._engine
        if engine is None:
            return _not_initialized("write_bytes_to_buffer")
        if size > source.nbytes:
            return _refused("write_bytes_to_buffer", f"{size} bytes of a source of {source.nbytes}")
        if size == 0:
            return 0
        data = bytes(source[:size]) if source.readonly else address_of(source)
        return _logged(engine, engine.copy(address, data, size), "write_bytes_to_buffer")

    def read_bytes_from_buffer(self, source_address: SupportsIndex, length: SupportsIndex) -> bytes:
        """length bytes from an address; b"" when they are not all mapped."""
        address, size = u64(source_address, "source_address"), u64(length, "length")
        engine = self._engine
        if engine is None:
            _not_initialized("read_bytes_from_buffer")
            return b""
        if size == 0:
            return b""
        try:
            data = bytearray(size)
        except (MemoryError, OverflowError):
            _refused("read_bytes_from_buffer", f"there is no memory for {size} bytes")
            return b""
        code = engine.copy(address_of(data), address, size)
        return b"" if _logged(engine, code, "read_bytes_from_buffer") != 0 else bytes(data)

    # Peers

    def get_first_buffer_address(self, segment_name: str) -> int:
        """Where the first buffer that a peer registered begins; 0 while there is none. The own name works."""
        engine = self._engine
        if engine is None:
            _not_initialized("get_first_buffer_address")
            return 0
        try:
            code, address = engine.first_buffer(segment_name, self._timeout)
        except ValueError as e:
            _refused("get_first_buffer_address", e)
            return 0
        if code == 0:
            return address
        late = f"{given_up(self._timeout)}: the peer has not answered"
        reason = late if code == KVFERRY_ERR_TIMED_OUT else engine.last_error()
        _refused(f"get_first_buffer_address of {segment_name}", reason)
        return 0

    def send_probe(self, peer_server_name: str) -> int:
        """0 when the peer answers, -102 when it is unreachable or refuses, -200 for an unknown name."""
        engine = self._engine
        if engine is None:
            return _not_initialized("send_probe")
        try:
            code = engine.probe(peer_server_name, self._timeout)
        except ValueError as e:
            _refused("send_probe", e)
            return -200
        return PEER_UNREACHABLE if code == KVFERRY_ERR_TIMED_OUT else code

    def warmup_efa_segment(self, segment_name: str) -> int:
        """0: there is no EFA here."""
        return 0

    def get_notifies(self) -> list[TransferNotify]:
        """Take the messages that were received, oldest first."""
        engine = self._engine
        if engine is None:
            _not_initialized("get_notifies")
            return []
        return [TransferNotify(name, text) for name, text in engine.notifies()]

    # Blocking transfers

    def transfer_sync_write(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Write length bytes from buffer to the peer's address; 0 or negative."""
        return self._transfer_one(target_hostname, buffer, peer_buffer_address, length, WRITE, None)

    def transfer_sync_read(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Read length bytes from the peer's address into buffer; 0 or negative."""
        return self._transfer_one(target_hostname, buffer, peer_buffer_address, length, READ, None)

    def transfer_sync(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        opcode: SupportsIndex,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Write or read, and deliver the message to the peer once that has completed; 0 or negative."""
        return self._transfer_one(target_hostname, buffer, peer_buffer_address, length, opcode, notify)

    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """transfer_sync_write() of many blocks at once; 0 when all were written, or negative."""
        return self._transfer_many(target_hostname, buffers, peer_buffer_addresses, lengths, WRITE, None)

    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """transfer_sync_read() of many blocks at once; 0 when all were read, or negative."""
        return self._transfer_many(target_hostname, buffers, peer_buffer_addresses, lengths, READ, None)

    def batch_transfer_sync(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """transfer_sync() of many blocks at once, with one message; 0 or negative."""
        return self._transfer_many(target_hostname, buffers, peer_buffer_addresses, lengths, opcode, notify)

    def _transfer_one(
        self,
        target: str,
        buffer: SupportsIndex,
        peer_address: SupportsIndex,
        length: SupportsIndex,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
    ) -> int:
        local, remote, size = _pack_one(buffer, peer_address, length)
        return self._transfer(target, local, remote, size, 1, opcode, notify, lambda: operator.index(length) / GIB)

    def _transfer_many(
        self,
        target: str,
        buffers: Integers,
        peer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
    ) -> int:
        local, remote, sizes = _pack_many(buffers, peer_addresses, lengths)
        if not local.length == remote.length == sizes.length:
            return _unequal(local, remote, sizes)
        return self._transfer(
            target, local.address, remote.address, sizes.address, local.length, opcode, notify, time_for(sizes)
        )

    def _transfer(
        self,
        target: str,
        local: Array,
        remote: Array,
        sizes: Array,
        count: int,
        opcode: SupportsIndex,
        notify: TransferNotify | None,
        more: Seconds,
    ) -> int:
        if self._engine is None:
            return _not_initialized("transfer")
        try:
            direction = _direction(opcode)
            message = None if notify is None else notification(notify.name, notify.msg)
        except ValueError as e:
            return _refused(f"transfer with {target}", e)
        return self._with_peer(
            target,
            more,
            lambda engine, segment, left: engine.transfer(
                direction, segment, local, remote, sizes, count, message, left, more
            ),
        )

    def _transfer_pages(self, target: str, described: Pages, opcode: int, max_batch: int) -> int:
        if self._engine is not None and described.ranges == 0:
            return 0

        def more() -> float:
            return described.bytes / GIB

        return self._with_peer(
            target,
            more,
            lambda engine, segment, left: engine.transfer_pages(opcode, segment, described, max_batch, left, more),
        )

    def _with_peer(self, target: str, more: Seconds, transfer: Callable[[Engine, int, float], int]) -> int:
        """Open a peer, and call transfer with the engine, the peer's id, and what is left of the time in seconds."""
        engine = self._engine
        if engine is None:
            return _not_initialized("transfer")
        deadline = time.monotonic() + self._timeout
        try:
            code = segment = engine.segment(target, self._timeout, more)
        except ValueError as e:
            return _refused(f"transfer with {target}", e)
        if segment >= 0:
            code = transfer(engine, segment, deadline - time.monotonic())
        if code == 0:
            return 0
        return _failed(engine, code, f"transfer with {target}", lambda: self._timeout + more())

    def _start_scatter(self, endpoint: str, described: Blocks, opcode: int) -> ScatterTransfer:
        engine, batch = self._engine, 0
        if engine is None:
            _not_initialized("scatter transfer")
        else:
            batch = engine.submit_scatter(opcode, endpoint, described)
            if batch == 0:
                _refused(f"scatter transfer with {endpoint}", engine.last_error())
        return ScatterTransfer(engine, batch, self._timeout + time_for(described.lengths)())

    # Transfers in the order of a CUDA stream

    @OnlyWithCuda
    def transfer_write_on_cuda(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None:
        """Write length bytes to the peer's address in the order of a stream: see batch_transfer_write_on_cuda()."""
        packed = _pack_one(buffer, peer_buffer_address, length)
        self._order(target_hostname, packed, 1, WRITE, stream_ptr)

    @OnlyWithCuda
    def transfer_read_on_cuda(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None:
        """Read length bytes into buffer in the order of a stream: see batch_transfer_write_on_cuda()."""
        packed = _pack_one(buffer, peer_buffer_address, length)
        self._order(target_hostname, packed, 1, READ, stream_ptr)

    @OnlyWithCuda
    def batch_transfer_write_on_cuda(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None:
        """Write blocks in the order of a stream: after what is queued in it by now, and before what is queued later.

        stream_ptr is a cudaStream_t or CUstream, 0 the default stream of the calling thread's current context. The call
        does not wait for the transfer; for a peer that is not open yet it waits. The memory must stay until the stream
        has come past the transfer. The stream goes on also when that fails; the reason is in the log and is raised by
        the engine's next call of this kind. RuntimeError says why nothing was queued.
        """
        self._order_many(target_hostname, buffers, peer_buffer_addresses, lengths, WRITE, stream_ptr)

    @OnlyWithCuda
    def batch_transfer_read_on_cuda(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None:
        """Read blocks in the order of a stream: see batch_transfer_write_on_cuda()."""
        self._order_many(target_hostname, buffers, peer_buffer_addresses, lengths, READ, stream_ptr)

    def _order_many(
        self,
        target: str,
        buffers: Integers,
        peer_addresses: Integers,
        lengths: Integers,
        opcode: int,
        stream: SupportsIndex,
    ) -> None:
        local, remote, sizes = _pack_many(buffers, peer_addresses, lengths)
        if not local.length == remote.length == sizes.length:
            raise RuntimeError(_unequal_text(local, remote, sizes))
        self._order(target, (local.address, remote.address, sizes.address), local.length, opcode, stream)

    def _order(
        self, target: str, arrays: tuple[Array, Array, Array], count: int, opcode: int, stream: SupportsIndex
    ) -> None:
        handle, engine = u64(stream, "stream_ptr"), self._engine
        if engine is None:
            raise RuntimeError("the engine is not initialized")
        try:
            code = segment = engine.segment(target, self._timeout)
        except ValueError as e:
            raise RuntimeError(f"{target!r} cannot be opened: {e}") from e
        if segment >= 0:
            code = engine.order("cuda", handle, opcode, segment, *arrays, count)
        if code != 0:
            raise RuntimeError(_reason(engine, code, lambda: self._timeout))

    # Transfers to be asked about

    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Start writing; a batch id, or 0 on failure. The buffers must stay until the batch has ended."""
        return self._submit_many(target_hostname, buffers, peer_buffer_addresses, lengths, WRITE)

    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Start reading; a batch id, or 0 on failure. The buffers must stay until the batch has ended."""
        return self._submit_many(target_hostname, buffers, peer_buffer_addresses, lengths, READ)

    def batch_transfer_async(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Start writing or reading; a batch id, or 0 on failure. The buffers must stay until the batch has ended."""
        return self._submit_many(target_hostname, buffers, peer_buffer_addresses, lengths, opcode)

    def transfer_submit_write(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int:
        """Start writing one block; a batch id, or 0 on failure. The buffer must stay until the batch has ended."""
        local, remote, size = _pack_one(buffer, peer_buffer_address, length)
        return self._submit(target_hostname, local, remote, size, 1, WRITE, lambda: operator.index(length) / GIB)

    def get_batch_transfer_status(self, batch_ids: Integers) -> int:
        """Wait for batches: 0 when all completed, -1 as soon as one failed or its time, counted from its start, was
        over. Either way all of the ids are freed, and what was unfinished is ended and touches no buffer any more."""
        batches = list(dict.fromkeys(u64_array(batch_ids, "batch_ids").items()))
        engine = self._engine
        if engine is None:
            return _not_initialized("get_batch_transfer_status")
        limit = engine.batches.limit(batches)
        code = engine.batches.wait(batches)
        return 0 if code == 0 else _failed(engine, code, "get_batch_transfer_status", lambda: limit)

    def transfer_check_status(self, batch_id: SupportsIndex) -> int:
        """Look at a batch: 1 completed and 0 still going; -1 failed; -2 timed out by MC_SLICE_TIMEOUT. At 1 and -1 it
        is freed."""
        batch = u64(batch_id, "batch_id")
        engine = self._engine
        if engine is None:
            return _not_initialized("transfer_check_status")
        if batch not in engine.batches:
            return _refused("transfer_check_status", f"there is no batch {batch}")
        return engine.batches.check(batch)

    def _submit_many(
        self,
        target: str,
        buffers: Integers,
        peer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
    ) -> int:
        local, remote, sizes = _pack_many(buffers, peer_addresses, lengths)
        if not local.length == remote.length == sizes.length:
            _unequal(local, remote, sizes)
            return 0
        return self._submit(target, local.address, remote.address, sizes.address, local.length, opcode, time_for(sizes))

    def _submit(
        self,
        target: str,
        local: Array,
        remote: Array,
        sizes: Array,
        count: int,
        opcode: SupportsIndex,
        more: Seconds,
    ) -> int:
        engine = self._engine
        if engine is None:
            _not_initialized("transfer")
            return 0
        try:
            direction, segment = _direction(opcode), engine.segment(target, self._timeout, more)
        except ValueError as e:
            _refused(f"transfer with {target}", e)
            return 0
        batch = 0
        if segment >= 0:
            batch = engine.submit(direction, segment, local, remote, sizes, count, self._timeout, 1 / GIB)
        if batch == 0:
            _refused(f"transfer with {target}", _reason(engine, segment, lambda: self._timeout + more()))
        return batch


class _Inherited(TransferEngine):
    """What a TransferEngine becomes in a forked child, where nothing of it works."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        raise LibraryError(
            f"this TransferEngine was made by process {self._pid}, from which this one was forked; "
            "an engine cannot be used after fork(): make a new TransferEngine()"
        )


_engines: weakref.WeakSet[TransferEngine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.__class__ = _Inherited
    _engines.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _transfer_timeout() -> float:
    """MC_TRANSFER_TIMEOUT in seconds, or where it is not set ASCEND_TRANSFER_TIMEOUT, which is in milliseconds. The
    native library warns of a value that is no good."""
    seconds = _whole_number("MC_TRANSFER_TIMEOUT")
    if seconds is not None:
        return max(5.0, float(seconds))
    milliseconds = _whole_number("ASCEND_TRANSFER_TIMEOUT")
    return 30.0 if milliseconds is None else milliseconds / 1000


def _whole_number(variable: str) -> int | None:
    """A number from 1 to 2^31-1 from the environment; None for anything else."""
    try:
        number = int(os.environ.get(variable, ""))
    except ValueError:
        return None
    return number if 1 <= number < 2**31 else None


def _transport(protocol: str) -> str | None:
    """What the native library is to install; None for the best there is."""
    if protocol in ("tcp", "ascend"):
        return protocol
    if protocol not in _strange_protocols:
        _strange_protocols.add(protocol)
        tell = _log.info if protocol == USUAL_PROTOCOL else _log.warning
        tell("initialize: kvferry has no protocol %r and uses TCP instead", protocol)
    return None


def _direction(opcode: SupportsIndex) -> int:
    number = operator.index(opcode)
    if number not in (READ, WRITE):
        raise ValueError(f"{number} is no opcode")
    return number


def _pack_one(buffer: SupportsIndex, peer_address: SupportsIndex, length: SupportsIndex) -> tuple[bytes, bytes, bytes]:
    try:
        return pack_u64(buffer), pack_u64(peer_address), pack_u64(length)
    except struct.error:
        raise TypeError(
            "buffer, peer_buffer_address and length must be integers from 0 to 2^64-1, "
            f"not {buffer!r}, {peer_address!r} and {length!r}"
        ) from None


def _pack_many(buffers: Integers, peer_addresses: Integers, lengths: Integers) -> tuple[U64Array, U64Array, U64Array]:
    return (
        u64_array(buffers, "buffers"),
        u64_array(peer_addresses, "peer_buffer_addresses"),
        u64_array(lengths, "lengths"),
    )


def _unequal(local: U64Array, remote: U64Array, sizes: U64Array) -> int:
    return _refused("batch transfer", _unequal_text(local, remote, sizes))


def _unequal_text(local: U64Array, remote: U64Array, sizes: U64Array) -> str:
    return f"{local.length} buffers, {remote.length} peer addresses and {sizes.length} lengths do not match"


def _not_initialized(call: str) -> int:
    return _refused(call, "the engine is not initialized")


def _refused(call: str, reason: str | Exception) -> int:
    _log.warning("%s: %s", call, reason)
    return -1


def _failed(engine: Engine, code: int, call: str, limit: Seconds) -> int:
    """Log why, unless the bytes could not be moved: that the native library has logged itself. limit is how long the
    call might take."""
    return -1 if code == KVFERRY_ERR_FAILED else _refused(call, _reason(engine, code, limit))


def _reason(engine: Engine, code: int, limit: Seconds) -> str:
    reason = engine.last_error()
    return f"{given_up(limit())}: {reason}" if code == KVFERRY_ERR_TIMED_OUT else reason


def _logged(engine: Engine, code: int, call: str) -> int:
    if code != 0:
        _refused(call, engine.last_error())
    return code
