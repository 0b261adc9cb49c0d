/* The types and numbers of the interface, which programs are compiled against. Also compiled as C++. */
#include "transfer_engine_ext.h"

#ifdef __cplusplus
#define HOLDS(what) static_assert(what, #what)
#else
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define HOLDS(what) typedef char JOIN(holds_in_line_, __LINE__)[(what) ? 1 : -1]
#endif

#define AT(type, field, offset) HOLDS(offsetof(type, field) == (offset))

HOLDS(sizeof(segment_handle_t) == 4 && (segment_handle_t)-1 < 0);
HOLDS(sizeof(segment_id_t) == 4 && (segment_id_t)-1 < 0);
HOLDS(sizeof(batch_id_t) == 8 && (batch_id_t)-1 > 0);
HOLDS(sizeof(transfer_engine_t) == 8);
HOLDS(sizeof(transport_t) == 8);

HOLDS(sizeof(struct transfer_request) == 40 && sizeof(transfer_request_t) == 40);
AT(transfer_request_t, opcode, 0);
AT(transfer_request_t, source, 8);
AT(transfer_request_t, target_id, 16);
AT(transfer_request_t, target_offset, 24);
AT(transfer_request_t, length, 32);

HOLDS(sizeof(struct transfer_status) == 16 && sizeof(transfer_status_t) == 16);
AT(transfer_status_t, status, 0);
AT(transfer_status_t, transferred_bytes, 8);

HOLDS(sizeof(struct notify_msg) == 16 && sizeof(notify_msg_t) == 16);
AT(notify_msg_t, name, 0);
AT(notify_msg_t, msg, 8);

HOLDS(sizeof(struct buffer_entry) == 16 && sizeof(buffer_entry_t) == 16);
AT(buffer_entry_t, addr, 0);
AT(buffer_entry_t, length, 8);

HOLDS(sizeof(struct segment_desc) == 48 && sizeof(segment_desc_t) == 48);
AT(segment_desc_t, type, 0);
AT(segment_desc_t, desc_.rdma.addr, 8);
AT(segment_desc_t, desc_.rdma.size, 16);
AT(segment_desc_t, desc_.rdma.location, 24);
AT(segment_desc_t, desc_.nvmeof.file_path, 8);
AT(segment_desc_t, desc_.nvmeof.subsystem_name, 16);
AT(segment_desc_t, desc_.nvmeof.proto, 24);
AT(segment_desc_t, desc_.nvmeof.ip, 32);
AT(segment_desc_t, desc_.nvmeof.port, 40);

HOLDS(sizeof(struct nic_load_stat) == 80 && sizeof(nic_load_stat_t) == 80);
AT(nic_load_stat_t, device_name, 0);
AT(nic_load_stat_t, inflight_bytes, 64);
AT(nic_load_stat_t, ewma_bandwidth_bps, 72);

HOLDS(LOCAL_SEGMENT == 0 && INVALID_BATCH == UINT64_MAX);
HOLDS(OPCODE_READ == 0 && OPCODE_WRITE == 1);
HOLDS(STATUS_WAITING == 0 && STATUS_PENDING == 1 && STATUS_INVALID == 2 && STATUS_CANCELED == 3);
HOLDS(STATUS_COMPLETED == 4 && STATUS_TIMEOUT == 5 && STATUS_FAILED == 6);

/* Every function, by the type that Mooncake's header gives it. */
transfer_engine_t (*create)(const char *, const char *, const char *, uint64_t, int) = createTransferEngine;
int (*discover)(transfer_engine_t) = discoverTopology;
int (*name)(transfer_engine_t, char *, size_t) = getLocalIpAndPort;
transport_t (*install)(transfer_engine_t, const char *, void **) = installTransport;
int (*uninstall)(transfer_engine_t, const char *) = uninstallTransport;
segment_id_t (*open)(transfer_engine_t, const char *) = openSegment;
segment_id_t (*open_fresh)(transfer_engine_t, const char *) = openSegmentNoCache;
int (*close)(transfer_engine_t, segment_id_t) = closeSegment;
int (*warmup)(transfer_engine_t, const char *) = warmupEfaSegment;
int (*remove_segment)(transfer_engine_t, const char *) = removeLocalSegment;
void (*destroy)(transfer_engine_t) = destroyTransferEngine;
int (*enter)(transfer_engine_t, void *, size_t, const char *, int) = registerLocalMemory;
int (*leave)(transfer_engine_t, void *) = unregisterLocalMemory;
int (*enter_all)(transfer_engine_t, buffer_entry_t *, size_t, const char *) = registerLocalMemoryBatch;
int (*leave_all)(transfer_engine_t, void **, size_t) = unregisterLocalMemoryBatch;
batch_id_t (*allocate)(transfer_engine_t, size_t) = allocateBatchID;
int (*submit)(transfer_engine_t, batch_id_t, struct transfer_request *, size_t) = submitTransfer;
int (*submit_notify)(transfer_engine_t, batch_id_t, struct transfer_request *, size_t,
                     notify_msg_t) = submitTransferWithNotify;
notify_msg_t *(*notifications)(transfer_engine_t, int *) = getNotifsFromEngine;
int (*free_notifications)(notify_msg_t *, int) = freeNotifsMsgBuf;
int (*notify)(transfer_engine_t, uint64_t, notify_msg_t) = genNotifyInEngine;
int (*status)(transfer_engine_t, batch_id_t, size_t, struct transfer_status *) = getTransferStatus;
int (*free_batch)(transfer_engine_t, batch_id_t) = freeBatchID;
int (*sync_segments)(transfer_engine_t) = syncSegmentCache;
int (*loads)(transfer_engine_t, nic_load_stat_t *, size_t *) = getNicLoadStats;
void (*graceful)(transfer_engine_t) = enableGracefulShutdown;
int (*links)(transfer_engine_t, char *, size_t, int) = showLinks;

int main(void)
{
    return 0;
}
