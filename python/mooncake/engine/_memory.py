"""The calls of TransferEngine about memory of this process."""

from __future__ import annotations

from typing import Any, SupportsIndex

from kvferry._access import READ_WRITE, flags
from kvferry._bindings import KVFERRY_ACCESS_NONE
from kvferry._ffi import Integers, address_of, flag, u64, u64_array, utf8
from mooncake.engine._base import Calls, checked
from mooncake.engine._refusals import Refused, fails_as


class MemoryCalls(Calls):
    """The calls. An address or a length that is no integer from 0 to 2^64-1 is a TypeError."""

    @fails_as(-1)
    def register_memory(
        self,
        buffer_addr: SupportsIndex,
        capacity: SupportsIndex,
        location: str = "*",
        remote_accessible: bool = True,
        *,
        access: str | None = None,
    ) -> int:
        """Let peers read and write memory, which must stay mapped until it is unregistered; 0 or negative.

        access, which Mooncake does not have, is what peers may do with the memory: "read", "write", "read-write" or
        "none". None leaves it to remote_accessible: everything or nothing. With "none" peers do not learn of the
        memory. access binds the transfers of peers, and those of this engine to its own segment. It does not bind the
        local memory of this engine's transfers. A ValueError for another text, and for remote_accessible False beside
        access.

        The memory may be the host's, a GPU's or an NPU's. The CUDA driver and AscendCL recognise a device's memory by
        its address where they can; otherwise location "cuda:N" or "npu:N" says which device it is on.
        """
        address, length = u64(buffer_addr, "buffer_addr"), u64(capacity, "capacity")
        granted = READ_WRITE if access is None else flags(access)
        if not flag(remote_accessible, "remote_accessible"):
            if access is not None:
                raise ValueError(f"remote_accessible is False, and access is {access!r}: only one may say it")
            granted = KVFERRY_ACCESS_NONE
        engine = self._initialized()
        return checked(engine, engine.register(address, length, location, granted))

    @fails_as(-1)
    def unregister_memory(self, buffer_addr: SupportsIndex) -> int:
        """End the registration that starts at buffer_addr; 0 or negative.

        -4 (KVFERRY_ERR_IN_USE) when something that is stuck, in a system call or on a device, may still use the memory,
        which must then be left as it is: the log says what is stuck. Another call waits for it again, and returns 0
        once it has ended.
        """
        address = u64(buffer_addr, "buffer_addr")
        engine = self._initialized()
        return checked(engine, engine.unregister(address))

    @fails_as(-1)
    def batch_register_memory(
        self, buffer_addresses: Integers, capacities: Integers, location: str = "*", *, access: str | None = None
    ) -> int:
        """Register all of the ranges or none; 0 or negative. access as for register_memory()."""
        addresses = u64_array(buffer_addresses, "buffer_addresses")
        lengths = u64_array(capacities, "capacities")
        granted = READ_WRITE if access is None else flags(access)
        engine = self._initialized()
        if addresses.length != lengths.length:
            raise Refused(f"{addresses.length} addresses and {lengths.length} capacities do not match")
        return checked(engine, engine.register_batch(addresses, lengths, location, granted))

    @fails_as(-1)
    def batch_unregister_memory(self, buffer_addresses: Integers) -> int:
        """End the registrations that start at these addresses, as many as there are. 0; -4, as unregister_memory(), if
        one is still in use; otherwise the first error."""
        addresses = u64_array(buffer_addresses, "buffer_addresses")
        engine = self._initialized()
        return checked(engine, engine.unregister_batch(addresses))

    @fails_as(0)
    def allocate_managed_buffer(self, length: SupportsIndex) -> int:
        """The address of registered memory of at least length bytes, which belongs to the engine; 0 on failure.
        free_managed_buffer() frees it, or the end of the engine."""
        size = u64(length, "length")
        return self._memory.allocate(size, self._initialized().register)

    @fails_as(-1)
    def free_managed_buffer(self, buffer_addr: SupportsIndex, length: SupportsIndex) -> int:
        """Take back what allocate_managed_buffer() returned; 0, or negative for any other address."""
        address = u64(buffer_addr, "buffer_addr")
        u64(length, "length")
        if not self._memory.free(address, self._initialized().unregister):
            raise Refused(f"{address:#x} is not the address of a managed buffer in use")
        return 0

    @fails_as(-1)
    def write_bytes_to_buffer(self, dest_address: SupportsIndex, src_ptr: Any, length: SupportsIndex) -> int:
        """Copy the first length bytes of a str (as UTF-8) or of any buffer to an address; 0. Negative when the source
        is shorter, or when not all of the address range is mapped."""
        address, size = u64(dest_address, "dest_address"), u64(length, "length")
        source = memoryview(utf8(src_ptr, "src_ptr") if isinstance(src_ptr, str) else src_ptr).cast("B")
        engine = self._initialized()
        if size > source.nbytes:
            raise Refused(f"length is {size}, but the source has only {source.nbytes} bytes")
        if size == 0:
            return 0
        data = bytes(source[:size]) if source.readonly else address_of(source)
        return checked(engine, engine.copy(address, data, size))

    @fails_as(b"")
    def read_bytes_from_buffer(self, source_address: SupportsIndex, length: SupportsIndex) -> bytes:
        """length bytes from an address; b"" when not all of them are mapped."""
        address, size = u64(source_address, "source_address"), u64(length, "length")
        engine = self._initialized()
        if size == 0:
            return b""
        try:
            data = bytearray(size)
        except (MemoryError, OverflowError):
            raise Refused(f"there is no memory for {size} bytes") from None
        if engine.copy(address_of(data), address, size) != 0:
            raise Refused(engine.last_error())
        return bytes(data)
