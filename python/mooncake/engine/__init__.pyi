# What type checkers see of mooncake.engine: the names, parameters and defaults of Mooncake 0.3.14's own stubs.
# Parameters have the types that kvferry takes, which may be more than Mooncake's. kvferry's own parameters stand behind
# a *. The docstrings are in the modules that implement the calls.

from collections.abc import Iterable
from typing import ClassVar, Literal, SupportsIndex, overload

from typing_extensions import Buffer

from kvferry._engine import Engine
from kvferry.stats import Stats

Integers = Iterable[SupportsIndex]
Access = Literal["none", "read", "write", "read-write"]

SUPPORT_CUDA: bool
SUPPORT_EFA: bool
SUPPORT_HIP: bool
SUPPORT_INTRA_NVLINK: bool
SUPPORT_MNNVL: bool
SUPPORT_MULTI_PROTOCOL: bool
SUPPORT_MUSA: bool

class TransferOpcode:
    Read: ClassVar[TransferOpcode]
    Write: ClassVar[TransferOpcode]
    READ: ClassVar[TransferOpcode]
    WRITE: ClassVar[TransferOpcode]
    __members__: ClassVar[dict[str, TransferOpcode]]
    def __init__(self, value: int) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def __ne__(self, other: object) -> bool: ...
    def __lt__(self, other: object) -> bool: ...
    def __le__(self, other: object) -> bool: ...
    def __gt__(self, other: object) -> bool: ...
    def __ge__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __int__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

Read: TransferOpcode
Write: TransferOpcode

_TransferOpcode = TransferOpcode

class ScatterTransferCompletionStatus:
    COMPLETED: ClassVar[ScatterTransferCompletionStatus]
    FAILED_DRAINED: ClassVar[ScatterTransferCompletionStatus]
    COMPLETION_UNKNOWN: ClassVar[ScatterTransferCompletionStatus]
    __members__: ClassVar[dict[str, ScatterTransferCompletionStatus]]
    def __init__(self, value: int) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def __ne__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __int__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class ScatterTransferTicket:
    @property
    def status(self) -> ScatterTransferCompletionStatus: ...
    @property
    def drained(self) -> bool: ...
    def drain(self, timeout_ms: SupportsIndex, /) -> ScatterTransferCompletionStatus: ...

class TransferNotify:
    name: str
    msg: str
    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self, name: str, msg: str) -> None: ...

InnerTransferEngine = Engine

class TransferEngine:
    TransferOpcode = _TransferOpcode

    def __init__(self) -> None: ...
    def initialize(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str,
        device_name: str | None,
        /,
    ) -> int: ...
    def initialize_ext(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str,
        device_name: str | None,
        metadata_type: str,
        /,
    ) -> int: ...
    def get_rpc_port(self) -> int: ...
    def stats(self) -> Stats | None: ...  # kvferry's own
    def allocate_managed_buffer(self, length: SupportsIndex, /) -> int: ...
    def free_managed_buffer(self, user_tensor: SupportsIndex, length: SupportsIndex, /) -> int: ...
    def transfer_sync_write(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def transfer_sync_read(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def submit_scatter_write(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Iterable[Integers],
        remote_offsets: Iterable[Integers],
        lengths: Iterable[Integers],
    ) -> ScatterTransferTicket: ...
    def submit_scatter_read(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Iterable[Integers],
        remote_offsets: Iterable[Integers],
        lengths: Iterable[Integers],
    ) -> ScatterTransferTicket: ...
    def scatter_transfer_sync_write_with_ticket(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Iterable[Integers],
        remote_offsets: Iterable[Integers],
        lengths: Iterable[Integers],
    ) -> ScatterTransferTicket: ...
    def scatter_transfer_sync_read_with_ticket(
        self,
        endpoint: str,
        local_base_addresses: Integers,
        local_capacities: Integers,
        remote_base_addresses: Integers,
        remote_capacities: Integers,
        local_offsets: Iterable[Integers],
        remote_offsets: Iterable[Integers],
        lengths: Iterable[Integers],
    ) -> ScatterTransferTicket: ...
    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_write_arrays(
        self,
        target_hostname: str,
        buffers: Buffer,
        peer_buffer_addresses: Buffer,
        lengths: Buffer,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_read_arrays(
        self,
        target_hostname: str,
        buffers: Buffer,
        peer_buffer_addresses: Buffer,
        lengths: Buffer,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_async_write_arrays(
        self,
        target_hostname: str,
        buffers: Buffer,
        peer_buffer_addresses: Buffer,
        lengths: Buffer,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_async_read_arrays(
        self,
        target_hostname: str,
        buffers: Buffer,
        peer_buffer_addresses: Buffer,
        lengths: Buffer,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_write_pages(
        self,
        target_hostname: str,
        src_pages: Buffer,
        dst_pages: Buffer,
        fields: Buffer,
        max_batch_size: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_read_pages(
        self,
        target_hostname: str,
        src_pages: Buffer,
        dst_pages: Buffer,
        fields: Buffer,
        max_batch_size: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
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
    ) -> int: ...
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
    ) -> int: ...
    def batch_transfer_async(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def transfer_write_on_cuda(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None: ...
    def transfer_read_on_cuda(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None: ...
    def batch_transfer_write_on_cuda(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None: ...
    def batch_transfer_read_on_cuda(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        stream_ptr: SupportsIndex = 0,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> None: ...
    def get_batch_transfer_status(self, batch_ids: Integers, /) -> int: ...
    def transfer_submit_write(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
        nic_hint: str = "",
    ) -> int: ...
    def transfer_check_status(self, batch_id: SupportsIndex, /) -> int: ...
    def write_bytes_to_buffer(
        self,
        dest_address: SupportsIndex,
        src_ptr: str | Buffer,
        length: SupportsIndex,
        /,
    ) -> int: ...
    def read_bytes_from_buffer(self, source_address: SupportsIndex, length: SupportsIndex, /) -> bytes: ...
    def register_memory(
        self,
        buffer_addr: SupportsIndex,
        capacity: SupportsIndex,
        location: str = "*",
        remote_accessible: bool = True,
        *,
        access: Access | None = None,
    ) -> int: ...
    def unregister_memory(self, buffer_addr: SupportsIndex, /) -> int: ...
    def batch_register_memory(
        self,
        buffer_addresses: Integers,
        capacities: Integers,
        location: str = "*",
        *,
        access: Access | None = None,
    ) -> int: ...
    def batch_unregister_memory(self, buffer_addresses: Integers, /) -> int: ...
    def get_local_topology(self, device_name: str | None = None) -> str: ...
    def get_first_buffer_address(self, segment_name: str, /) -> int: ...
    def warmup_efa_segment(self, segment_name: str) -> int: ...
    def get_notifies(self) -> list[TransferNotify]: ...
    def send_probe(self, peer_server_name: str) -> int: ...
    def get_engine(self) -> InnerTransferEngine | None: ...
    def get_engine_ptr(self) -> int: ...
