"""Written by scripts/generate_bindings.py from the C headers. Not to be edited.

The headers say what each function does. Structs keep their names; a function is an attribute of Functions. An array
that a function only reads is passed by its address, or as bytes; other pointers as ctypes.byref() or an array.
"""

# ruff: noqa: E501
# fmt: off
from __future__ import annotations

import ctypes
from typing import Any, Callable, ClassVar, Union

Address = Union[int, bytes, None]
Text = Union[bytes, "ctypes.Array[ctypes.c_char]", None]

LOCAL_SEGMENT = 0
INVALID_BATCH = 18446744073709551615
OPCODE_READ = 0
OPCODE_WRITE = 1
STATUS_WAITING = 0
STATUS_PENDING = 1
STATUS_INVALID = 2
STATUS_CANCELED = 3
STATUS_COMPLETED = 4
STATUS_TIMEOUT = 5
STATUS_FAILED = 6
KVFERRY_OK = 0
KVFERRY_ERR_IN_USE = -4
KVFERRY_ERR_FAILED = -1000
KVFERRY_ERR_TIMED_OUT = -1001
KVFERRY_ERR_INTERRUPTED = -1002
KVFERRY_ERR_FORKED = -1003
KVFERRY_LOG_TRACE = 0
KVFERRY_LOG_INFO = 1
KVFERRY_LOG_WARNING = 2
KVFERRY_LOG_ERROR = 3
KVFERRY_ACCESS_NONE = 0
KVFERRY_ACCESS_REMOTE_READ = 1
KVFERRY_ACCESS_REMOTE_WRITE = 2
KVFERRY_COMPLETIONS_MAX = 1048576
KVFERRY_REASON_NONE = 0
KVFERRY_REASON_REJECTED = 1
KVFERRY_REASON_CONNECTION = 2
KVFERRY_REASON_STALLED = 3
KVFERRY_REASON_PEER = 4
KVFERRY_REASON_LOCAL_MEMORY = 5
KVFERRY_REASON_SECURITY = 6
KVFERRY_REASON_METADATA = 7
KVFERRY_REASON_TIMEOUT = 8
KVFERRY_REASON_CANCELLED = 9
KVFERRY_REASON_CLOSED = 10
KVFERRY_REASON_OTHER = 11
KVFERRY_REASON_REVOKED = 12
KVFERRY_PATH_TCP = 1
KVFERRY_PATH_HOST = 2
KVFERRY_PATH_LOCAL = 4
KVFERRY_BLOCKS = 0
KVFERRY_SLOTS = 1
KVFERRY_OFFERED = 2
KVFERRY_OFFER_READ = 1
KVFERRY_OFFER_WRITE = 2
KVFERRY_OFFER_ONCE = 4


class transfer_request_t(ctypes.Structure):
    opcode: int
    source: int | None
    target_id: int
    target_offset: int
    length: int
    _fields_: ClassVar = [
        ("opcode", ctypes.c_int),
        ("source", ctypes.c_void_p),
        ("target_id", ctypes.c_int32),
        ("target_offset", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
    ]


class transfer_status_t(ctypes.Structure):
    status: int
    transferred_bytes: int
    _fields_: ClassVar = [
        ("status", ctypes.c_int),
        ("transferred_bytes", ctypes.c_uint64),
    ]


class notify_msg_t(ctypes.Structure):
    name: bytes | None
    msg: bytes | None
    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("msg", ctypes.c_char_p),
    ]


class buffer_entry_t(ctypes.Structure):
    addr: int | None
    length: int
    _fields_: ClassVar = [
        ("addr", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
    ]


class segment_desc_desc_rdma_t(ctypes.Structure):
    addr: int | None
    size: int
    location: bytes | None
    _fields_: ClassVar = [
        ("addr", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("location", ctypes.c_char_p),
    ]


class segment_desc_desc_nvmeof_t(ctypes.Structure):
    file_path: bytes | None
    subsystem_name: bytes | None
    proto: bytes | None
    ip: bytes | None
    port: int
    _fields_: ClassVar = [
        ("file_path", ctypes.c_char_p),
        ("subsystem_name", ctypes.c_char_p),
        ("proto", ctypes.c_char_p),
        ("ip", ctypes.c_char_p),
        ("port", ctypes.c_uint64),
    ]


class segment_desc_desc_t(ctypes.Union):
    rdma: segment_desc_desc_rdma_t
    nvmeof: segment_desc_desc_nvmeof_t
    _fields_: ClassVar = [
        ("rdma", segment_desc_desc_rdma_t),
        ("nvmeof", segment_desc_desc_nvmeof_t),
    ]


class segment_desc_t(ctypes.Structure):
    type: int
    desc_: segment_desc_desc_t
    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("desc_", segment_desc_desc_t),
    ]


class nic_load_stat_t(ctypes.Structure):
    device_name: bytes
    inflight_bytes: int
    ewma_bandwidth_bps: float
    _fields_: ClassVar = [
        ("device_name", ctypes.c_char * 64),
        ("inflight_bytes", ctypes.c_uint64),
        ("ewma_bandwidth_bps", ctypes.c_double),
    ]


class kvferry_stats_t(ctypes.Structure):
    read_requests: int
    write_requests: int
    read_bytes: int
    write_bytes: int
    failed_requests: int
    batches: int
    failed_batches: int
    batch_nanoseconds: int
    requests_in_flight: int
    bytes_in_flight: int
    served_read_requests: int
    served_write_requests: int
    served_read_bytes: int
    served_write_bytes: int
    sessions: int
    refused_connections: int
    dropped_log_lines: int
    _fields_: ClassVar = [
        ("read_requests", ctypes.c_uint64),
        ("write_requests", ctypes.c_uint64),
        ("read_bytes", ctypes.c_uint64),
        ("write_bytes", ctypes.c_uint64),
        ("failed_requests", ctypes.c_uint64),
        ("batches", ctypes.c_uint64),
        ("failed_batches", ctypes.c_uint64),
        ("batch_nanoseconds", ctypes.c_uint64),
        ("requests_in_flight", ctypes.c_uint64),
        ("bytes_in_flight", ctypes.c_uint64),
        ("served_read_requests", ctypes.c_uint64),
        ("served_write_requests", ctypes.c_uint64),
        ("served_read_bytes", ctypes.c_uint64),
        ("served_write_bytes", ctypes.c_uint64),
        ("sessions", ctypes.c_uint64),
        ("refused_connections", ctypes.c_uint64),
        ("dropped_log_lines", ctypes.c_uint64),
    ]


class kvferry_transfer_t(ctypes.Structure):
    segment: bytes | None
    opcode: int
    local: int | None
    remote: int | None
    lengths: int | None
    count: int
    plan: int | None
    plan_index: int
    notify_name: bytes | None
    notify_text: bytes | None
    timeout_ms: int
    stream_kind: bytes | None
    stream: int | None
    announce: int
    traceparent: bytes | None
    _fields_: ClassVar = [
        ("segment", ctypes.c_char_p),
        ("opcode", ctypes.c_int),
        ("local", ctypes.c_void_p),
        ("remote", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("plan", ctypes.c_void_p),
        ("plan_index", ctypes.c_size_t),
        ("notify_name", ctypes.c_char_p),
        ("notify_text", ctypes.c_char_p),
        ("timeout_ms", ctypes.c_int64),
        ("stream_kind", ctypes.c_char_p),
        ("stream", ctypes.c_void_p),
        ("announce", ctypes.c_int),
        ("traceparent", ctypes.c_char_p),
    ]


class kvferry_progress_t(ctypes.Structure):
    moved: int
    total: int
    nanoseconds: int
    _fields_: ClassVar = [
        ("moved", ctypes.c_uint64),
        ("total", ctypes.c_uint64),
        ("nanoseconds", ctypes.c_uint64),
    ]


class kvferry_failure_t(ctypes.Structure):
    reason: int
    opcode: int
    request: int
    local: int
    remote: int
    length: int
    progress: kvferry_progress_t
    _fields_: ClassVar = [
        ("reason", ctypes.c_int),
        ("opcode", ctypes.c_int),
        ("request", ctypes.c_uint64),
        ("local", ctypes.c_uint64),
        ("remote", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("progress", kvferry_progress_t),
    ]


class kvferry_outcome_t(ctypes.Structure):
    began: int
    ended: int
    requests: int
    paths: int
    trace: bytes
    address: bytes
    _fields_: ClassVar = [
        ("began", ctypes.c_uint64),
        ("ended", ctypes.c_uint64),
        ("requests", ctypes.c_uint64),
        ("paths", ctypes.c_int),
        ("trace", ctypes.c_char * 64),
        ("address", ctypes.c_char * 128),
    ]


class kvferry_batch_status_t(ctypes.Structure):
    tasks: int
    completed: int
    failed: int
    timed_out: int
    bytes: int
    _fields_: ClassVar = [
        ("tasks", ctypes.c_uint64),
        ("completed", ctypes.c_uint64),
        ("failed", ctypes.c_uint64),
        ("timed_out", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    ]


class kvferry_metadata_server_options_t(ctypes.Structure):
    host: bytes | None
    path: bytes | None
    snapshot: bytes | None
    token: bytes | None
    tls_cert: bytes | None
    tls_key: bytes | None
    max_keys: int
    max_value: int
    max_bytes: int
    max_connections: int
    port: int
    _fields_: ClassVar = [
        ("host", ctypes.c_char_p),
        ("path", ctypes.c_char_p),
        ("snapshot", ctypes.c_char_p),
        ("token", ctypes.c_char_p),
        ("tls_cert", ctypes.c_char_p),
        ("tls_key", ctypes.c_char_p),
        ("max_keys", ctypes.c_uint64),
        ("max_value", ctypes.c_uint64),
        ("max_bytes", ctypes.c_uint64),
        ("max_connections", ctypes.c_uint64),
        ("port", ctypes.c_int),
    ]


class kvferry_place_t(ctypes.Structure):
    layout: int | None
    numbers: int | None
    count: int
    first: int
    kind: int
    _fields_: ClassVar = [
        ("layout", ctypes.c_void_p),
        ("numbers", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("first", ctypes.c_uint64),
        ("kind", ctypes.c_int),
    ]


class kvferry_plan_transfer_t(ctypes.Structure):
    source: int
    destination: int
    ranges: int
    bytes: int
    _fields_: ClassVar = [
        ("source", ctypes.c_uint64),
        ("destination", ctypes.c_uint64),
        ("ranges", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    ]


class Functions:
    """Every function of the headers, as one loaded copy of the library has it."""

    createTransferEngine: Callable[[Text, Text, Text, int, int], int | None]
    destroyTransferEngine: Callable[[Address], None]
    discoverTopology: Callable[[Address], int]
    getLocalIpAndPort: Callable[[Address, Text, int], int]
    installTransport: Callable[[Address, Text, Any], int | None]
    uninstallTransport: Callable[[Address, Text], int]
    openSegment: Callable[[Address, Text], int]
    openSegmentNoCache: Callable[[Address, Text], int]
    closeSegment: Callable[[Address, int], int]
    warmupEfaSegment: Callable[[Address, Text], int]
    removeLocalSegment: Callable[[Address, Text], int]
    registerLocalMemory: Callable[[Address, Address, int, Text, int], int]
    unregisterLocalMemory: Callable[[Address, Address], int]
    registerLocalMemoryBatch: Callable[[Address, Any, int, Text], int]
    unregisterLocalMemoryBatch: Callable[[Address, Any, int], int]
    allocateBatchID: Callable[[Address, int], int]
    submitTransfer: Callable[[Address, int, Any, int], int]
    submitTransferWithNotify: Callable[[Address, int, Any, int, notify_msg_t], int]
    getNotifsFromEngine: Callable[[Address, Any], Any]
    freeNotifsMsgBuf: Callable[[Any, int], int]
    genNotifyInEngine: Callable[[Address, int, notify_msg_t], int]
    getTransferStatus: Callable[[Address, int, int, Any], int]
    freeBatchID: Callable[[Address, int], int]
    syncSegmentCache: Callable[[Address], int]
    getNicLoadStats: Callable[[Address, Any, Any], int]
    enableGracefulShutdown: Callable[[Address], None]
    showLinks: Callable[[Address, Text, int, int], int]
    kvferry_last_error: Callable[[], bytes | None]
    kvferry_version: Callable[[], bytes | None]
    kvferry_log: Callable[[int, Text], int]
    kvferry_destroy: Callable[[Address], int]
    kvferry_rpc_port: Callable[[Address], int]
    kvferry_transfer_timeout_ms: Callable[[Address], int]
    kvferry_register: Callable[[Address, Any, int, Text, int], int]
    kvferry_unregister: Callable[[Address, Address], int]
    kvferry_stats: Callable[[Address, Any, int], int]
    kvferry_stats_json: Callable[[Address, Text, int], int]
    kvferry_settings_json: Callable[[Text, int], int]
    kvferry_submit: Callable[[Address, int, int, Address, Address, Address, int, Any, Any], int]
    kvferry_batch_wait: Callable[[Address, int, int], int]
    kvferry_batches_wait: Callable[[Address, Address, int, int], int]
    kvferry_transfer_sync: Callable[[Address, int, int, Address, Address, Address, int, Any, int, Any], int]
    kvferry_submit_pages: Callable[[Address, int, int, Address, Address, int, Address, int, int, Any], int]
    kvferry_transfer_pages: Callable[[Address, int, int, Address, Address, int, Address, int, int, int, Any], int]
    kvferry_submit_scatter: Callable[[Address, int, Text, Address, int, Address, Address, Address, int, Any], int]
    kvferry_transfer_on_stream: Callable[[Address, Text, Address, int, int, Address, Address, Address, int], int]
    kvferry_start: Callable[[Address, Any, int, Any], int]
    kvferry_completions_fd: Callable[[Address], int]
    kvferry_completions_next: Callable[[Address, Any, int], int]
    kvferry_batch_progress: Callable[[Address, int, Any], int]
    kvferry_batch_failure: Callable[[Address, int, Any, int, Text, int], int]
    kvferry_batch_outcome: Callable[[Address, int, Any, int], int]
    kvferry_batch_status: Callable[[Address, int, Any], int]
    kvferry_batch_error: Callable[[Address, int, Text, int], int]
    kvferry_batch_bytes: Callable[[Address, int], int]
    kvferry_batch_cancel: Callable[[Address, int], int]
    kvferry_batch_discard: Callable[[Address, int], int]
    kvferry_open_segment: Callable[[Address, Text, int], int]
    kvferry_probe: Callable[[Address, Text], int]
    kvferry_first_buffer: Callable[[Address, Text], int]
    kvferry_start_engine: Callable[[Text, Text, Text], int | None]
    kvferry_start_engine_with: Callable[[Text, Text, Text, Text, int], int | None]
    kvferry_start_first_buffer: Callable[[Address, Text], int | None]
    kvferry_start_probe: Callable[[Address, Text], int | None]
    kvferry_start_describe: Callable[[Address, Text], int | None]
    kvferry_start_members: Callable[[Text, Text, int], int | None]
    kvferry_start_forget: Callable[[Text, Text, int], int | None]
    kvferry_text: Callable[[Address, Text, int], int]
    kvferry_text_free: Callable[[Address], int]
    kvferry_call_wait: Callable[[Address, int, Any], int]
    kvferry_call_abandon: Callable[[Address], int]
    kvferry_metadata_server_start: Callable[[Any, Text, int], int | None]
    kvferry_metadata_server_start_mutual: Callable[[Any, Text, Text, int], int | None]
    kvferry_metadata_server_stop: Callable[[Address], int]
    kvferry_copy: Callable[[Address, Address, int], int]
    kvferry_layout_parse: Callable[[Text, int], int | None]
    kvferry_layout_free: Callable[[Address], int]
    kvferry_plan_make: Callable[[Any, int, Any, int, int, int], int | None]
    kvferry_plan_free: Callable[[Address], int]
    kvferry_plan_transfers: Callable[[Address], int]
    kvferry_plan_transfer: Callable[[Address, int, Any], int]
    kvferry_submit_plan: Callable[[Address, int, int, Address, int, int, Any], int]
    kvferry_transfer_plan: Callable[[Address, int, int, Address, int, int, int, Any], int]
    kvferry_offer_make: Callable[[Address, Any, int, int], int | None]
    kvferry_offer_text: Callable[[Address, Text, int], int]
    kvferry_offer_revoke: Callable[[Address], int]
    kvferry_offer_free: Callable[[Address], int]
    kvferry_offered_parse: Callable[[Text, int], int | None]
    kvferry_offered_engine: Callable[[Address, Text, int], int]
    kvferry_offered_free: Callable[[Address], int]

    def __init__(self, library: ctypes.CDLL) -> None:
        """Bind the functions of library. AttributeError when it lacks one."""
        for name, (result, parameters) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = parameters
            setattr(self, name, function)


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "createTransferEngine": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]),
    "destroyTransferEngine": (None, [ctypes.c_void_p]),
    "discoverTopology": (ctypes.c_int, [ctypes.c_void_p]),
    "getLocalIpAndPort": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "installTransport": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]),
    "uninstallTransport": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "openSegment": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_char_p]),
    "openSegmentNoCache": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_char_p]),
    "closeSegment": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "warmupEfaSegment": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "removeLocalSegment": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "registerLocalMemory": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]),
    "unregisterLocalMemory": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "registerLocalMemoryBatch": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(buffer_entry_t), ctypes.c_size_t, ctypes.c_char_p]),
    "unregisterLocalMemoryBatch": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]),
    "allocateBatchID": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t]),
    "submitTransfer": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(transfer_request_t), ctypes.c_size_t]),
    "submitTransferWithNotify": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(transfer_request_t), ctypes.c_size_t, notify_msg_t]),
    "getNotifsFromEngine": (ctypes.POINTER(notify_msg_t), [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]),
    "freeNotifsMsgBuf": (ctypes.c_int, [ctypes.POINTER(notify_msg_t), ctypes.c_int]),
    "genNotifyInEngine": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, notify_msg_t]),
    "getTransferStatus": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.POINTER(transfer_status_t)]),
    "freeBatchID": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
    "syncSegmentCache": (ctypes.c_int, [ctypes.c_void_p]),
    "getNicLoadStats": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(nic_load_stat_t), ctypes.POINTER(ctypes.c_size_t)]),
    "enableGracefulShutdown": (None, [ctypes.c_void_p]),
    "showLinks": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]),
    "kvferry_last_error": (ctypes.c_char_p, []),
    "kvferry_version": (ctypes.c_char_p, []),
    "kvferry_log": (ctypes.c_int, [ctypes.c_int, ctypes.c_char_p]),
    "kvferry_destroy": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_rpc_port": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_transfer_timeout_ms": (ctypes.c_int64, [ctypes.c_void_p]),
    "kvferry_register": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(buffer_entry_t), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]),
    "kvferry_unregister": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "kvferry_stats": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(kvferry_stats_t), ctypes.c_size_t]),
    "kvferry_stats_json": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_settings_json": (ctypes.c_int64, [ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_submit": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(notify_msg_t), ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_batch_wait": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64]),
    "kvferry_batches_wait": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]),
    "kvferry_transfer_sync": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(notify_msg_t), ctypes.c_int64, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_submit_pages": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_transfer_pages": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int64, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_submit_scatter": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_transfer_on_stream": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
    "kvferry_start": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(kvferry_transfer_t), ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_completions_fd": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_completions_next": (ctypes.c_int64, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]),
    "kvferry_batch_progress": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(kvferry_progress_t)]),
    "kvferry_batch_failure": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(kvferry_failure_t), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_batch_outcome": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(kvferry_outcome_t), ctypes.c_size_t]),
    "kvferry_batch_status": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(kvferry_batch_status_t)]),
    "kvferry_batch_error": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_batch_bytes": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_uint64]),
    "kvferry_batch_cancel": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
    "kvferry_batch_discard": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
    "kvferry_open_segment": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]),
    "kvferry_probe": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "kvferry_first_buffer": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_char_p]),
    "kvferry_start_engine": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p]),
    "kvferry_start_engine_with": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_start_first_buffer": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "kvferry_start_probe": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "kvferry_start_describe": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "kvferry_start_members": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]),
    "kvferry_start_forget": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]),
    "kvferry_text": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_text_free": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_call_wait": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_call_abandon": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_metadata_server_start": (ctypes.c_void_p, [ctypes.POINTER(kvferry_metadata_server_options_t), ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_metadata_server_start_mutual": (ctypes.c_void_p, [ctypes.POINTER(kvferry_metadata_server_options_t), ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_metadata_server_stop": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_copy": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
    "kvferry_layout_parse": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_layout_free": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_plan_make": (ctypes.c_void_p, [ctypes.POINTER(kvferry_place_t), ctypes.c_size_t, ctypes.POINTER(kvferry_place_t), ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int]),
    "kvferry_plan_free": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_plan_transfers": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_plan_transfer": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(kvferry_plan_transfer_t)]),
    "kvferry_submit_plan": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_transfer_plan": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int64, ctypes.POINTER(ctypes.c_uint64)]),
    "kvferry_offer_make": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.POINTER(kvferry_place_t), ctypes.c_int, ctypes.c_int64]),
    "kvferry_offer_text": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_offer_revoke": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_offer_free": (ctypes.c_int, [ctypes.c_void_p]),
    "kvferry_offered_parse": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_offered_engine": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "kvferry_offered_free": (ctypes.c_int, [ctypes.c_void_p]),
}
