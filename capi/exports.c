/*
 * The functions of transfer_engine_c.h: each refuses a forked child and hands the call to Go. Where it fails, one line in the
 * log says why: a program that was written for Mooncake's library has no other way to learn it.
 */
#include "_cgo_export.h"
#include "internal.h"

#include <stdio.h>
#include <unistd.h>

/* Says once why nothing works in a forked child. Its log has nobody to write it. */
static void tell_fork(const char *call)
{
    static int told;
    char line[REASON_SIZE + 128];
    int length;

    if (__atomic_exchange_n(&told, 1, __ATOMIC_RELAXED)) {
        return;
    }
    length = snprintf(line, sizeof line, "ERROR\tkvferry\t%s failed\t%s\n", call, kvferry_reason());
    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0) {
        return; /* nobody is left to be told */
    }
}

/* ENTER for the functions that log why they fail. */
#define ENTER_LOUDLY(value)                 \
    do {                                    \
        if (kvferry_refused_after_fork()) { \
            tell_fork(__func__);            \
            return value;                   \
        }                                   \
        kvferry_tend_handlers();            \
    } while (0)

/* Logs why a call failed. */
static void tell(transfer_engine_t engine, const char *call)
{
    kvferry_go_tell_failure(engine, call, kvferry_reason());
}

/* A result that is 0, or for an id not negative, unless the call failed. */
static int told(transfer_engine_t engine, const char *call, int result)
{
    if (result != 0) {
        tell(engine, call);
    }
    return result;
}

static segment_id_t told_id(transfer_engine_t engine, const char *call, segment_id_t id)
{
    if (id < 0) {
        tell(engine, call);
    }
    return id;
}

/* A result that is not NULL unless the call failed. */
static void *told_pointer(transfer_engine_t engine, const char *call, void *result)
{
    if (result == NULL) {
        tell(engine, call);
    }
    return result;
}

/* The same for the function that they are in, and its engine. */
#define TOLD(result) told(engine, __func__, result)
#define TOLD_ID(id) told_id(engine, __func__, id)
#define TOLD_POINTER(pointer) told_pointer(engine, __func__, pointer)

transfer_engine_t createTransferEngine(const char *metadata_conn_string, const char *local_server_name,
                                       const char *ip_or_host_name, uint64_t rpc_port, int auto_discover)
{
    ENTER_LOUDLY(NULL);
    (void)rpc_port;
    if (kvferry_reserve_threads() != 0) {
        return told_pointer(NULL, __func__, NULL);
    }
    return told_pointer(NULL, __func__, kvferry_go_create(metadata_conn_string, local_server_name, ip_or_host_name,
                                                          auto_discover, kvferry_reason()));
}

void destroyTransferEngine(transfer_engine_t engine)
{
    ENTER_LOUDLY();
    if (kvferry_go_destroy(engine, kvferry_reason()) == -1) { /* what else went wrong is in the log */
        tell(NULL, __func__);
    }
}

int discoverTopology(transfer_engine_t engine)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_is_live(engine, kvferry_reason()));
}

int getLocalIpAndPort(transfer_engine_t engine, char *buf_out, size_t buf_len)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_address(engine, buf_out, buf_len, kvferry_reason()));
}

transport_t installTransport(transfer_engine_t engine, const char *proto, void **args)
{
    ENTER_LOUDLY(NULL);
    (void)args;
    return TOLD_POINTER(kvferry_go_install(engine, proto, kvferry_reason()));
}

int uninstallTransport(transfer_engine_t engine, const char *proto)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_uninstall(engine, proto, kvferry_reason()));
}

segment_id_t openSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD_ID(kvferry_go_open_segment(engine, segment_name, 1, kvferry_reason()));
}

segment_id_t openSegmentNoCache(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD_ID(kvferry_go_open_segment(engine, segment_name, 0, kvferry_reason()));
}

int closeSegment(transfer_engine_t engine, segment_id_t segment_id)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    (void)segment_id;
    return TOLD(kvferry_go_is_live(engine, kvferry_reason()));
}

int warmupEfaSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_warmup(engine, segment_name, kvferry_reason()));
}

int removeLocalSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_remove_segment(engine, segment_name, kvferry_reason()));
}

int registerLocalMemory(transfer_engine_t engine, void *addr, size_t length, const char *location,
                        int remote_accessible)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_register(engine, addr, length, location, remote_accessible, kvferry_reason()));
}

int unregisterLocalMemory(transfer_engine_t engine, void *addr)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_unregister(engine, addr, kvferry_reason()));
}

int registerLocalMemoryBatch(transfer_engine_t engine, buffer_entry_t *buffer_list, size_t buffer_len,
                             const char *location)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_register_batch(engine, buffer_list, buffer_len, location, kvferry_reason()));
}

int unregisterLocalMemoryBatch(transfer_engine_t engine, void **addr_list, size_t addr_len)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_unregister_batch(engine, addr_list, addr_len, kvferry_reason()));
}

batch_id_t allocateBatchID(transfer_engine_t engine, size_t batch_size)
{
    batch_id_t batch;

    ENTER_LOUDLY(INVALID_BATCH);
    batch = kvferry_go_allocate_batch(engine, batch_size, kvferry_reason());
    if (batch == INVALID_BATCH) {
        tell(engine, __func__);
    }
    return batch;
}

int submitTransfer(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries, size_t count)
{
    ENTER_LOUDLY(FORKED_STATUS);
    return TOLD(kvferry_go_submit(engine, batch_id, entries, count, kvferry_reason()));
}

int submitTransferWithNotify(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries,
                             size_t count, notify_msg_t notify_msg)
{
    ENTER_LOUDLY(FORKED_STATUS);
    return TOLD(kvferry_go_submit_with_notify(engine, batch_id, entries, count, notify_msg.name, notify_msg.msg,
                                              kvferry_reason()));
}

int getTransferStatus(transfer_engine_t engine, batch_id_t batch_id, size_t task_id, struct transfer_status *status)
{
    ENTER_LOUDLY(FORKED_STATUS);
    return TOLD(kvferry_go_task_status(engine, batch_id, task_id, status, kvferry_reason()));
}

int freeBatchID(transfer_engine_t engine, batch_id_t batch_id)
{
    ENTER_LOUDLY(FORKED_STATUS);
    return TOLD(kvferry_go_free_batch(engine, batch_id, kvferry_reason()));
}

notify_msg_t *getNotifsFromEngine(transfer_engine_t engine, int *size)
{
    notify_msg_t *list = NULL;

    if (size != NULL) {
        *size = 0;
    }
    ENTER_LOUDLY(NULL);
    TOLD(kvferry_go_take_notifications(engine, &list, size, kvferry_reason()));
    return list;
}

int freeNotifsMsgBuf(notify_msg_t *msg, int size)
{
    int i;

    ENTER_LOUDLY(-FORKED_STATUS);
    if (size < 0 || (msg == NULL && size > 0)) {
        kvferry_explain("%d notifications at %p cannot be freed", size, (void *)msg);
        return told(NULL, __func__, -1);
    }
    for (i = 0; i < size; i++) {
        free(msg[i].name);
        free(msg[i].msg);
    }
    free(msg);
    return 0;
}

int genNotifyInEngine(transfer_engine_t engine, uint64_t target_id, notify_msg_t notify_msg)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_send_notification(engine, target_id, notify_msg.name, notify_msg.msg, kvferry_reason()));
}

int syncSegmentCache(transfer_engine_t engine)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_sync_segments(engine, kvferry_reason()));
}

int getNicLoadStats(transfer_engine_t engine, nic_load_stat_t *stats, size_t *count)
{
    int code;

    ENTER_LOUDLY(-FORKED_STATUS);
    if (stats == NULL || count == NULL) {
        kvferry_explain("there is no room for load figures: NULL");
        return TOLD(-1);
    }
    code = TOLD(kvferry_go_is_live(engine, kvferry_reason()));
    if (code == 0) {
        *count = 0;
    }
    return code;
}

void enableGracefulShutdown(transfer_engine_t engine)
{
    ENTER_LOUDLY();
    TOLD(kvferry_go_enable_graceful_shutdown(engine, kvferry_reason()));
}

int showLinks(transfer_engine_t engine, char *buf_out, size_t buf_len, int json)
{
    ENTER_LOUDLY(-FORKED_STATUS);
    return TOLD(kvferry_go_show_links(engine, buf_out, buf_len, json, kvferry_reason()));
}
