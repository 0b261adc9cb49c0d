/*
 * The functions of transfer_engine_c.h. Each refuses a forked child, and hands the call to the Go function kvferry_go_* of the
 * same purpose, which also logs why a call fails.
 */
#include "_cgo_export.h"
#include "internal.h"

#include <stdio.h>
#include <unistd.h>

/* Writes to standard error, once, why no call works in a forked child. The goroutine that writes the log is not there. */
static void report_fork(const char *function)
{
    static int reported;
    char line[REASON_SIZE + 128];
    int length;

    if (__atomic_exchange_n(&reported, 1, __ATOMIC_RELAXED)) {
        return;
    }
    length = snprintf(line, sizeof line, "ERROR\tkvferry\t%s failed\t%s\n", function, kvferry_reason());
    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0) {
        return; /* there is no other place to report it */
    }
}

/* ENTER for the functions whose failures are logged. */
#define ENTER_LOGGED(value)                 \
    do {                                    \
        if (kvferry_refused_after_fork()) { \
            report_fork(__func__);          \
            return value;                   \
        }                                   \
        kvferry_tend_handlers();            \
    } while (0)

transfer_engine_t createTransferEngine(const char *metadata_conn_string, const char *local_server_name,
                                       const char *ip_or_host_name, uint64_t rpc_port, int auto_discover)
{
    ENTER_LOGGED(NULL);
    (void)rpc_port;
    if (kvferry_reserve_threads() != 0) {
        kvferry_go_log_failure(__func__, kvferry_reason());
        return NULL;
    }
    return kvferry_go_create(metadata_conn_string, local_server_name, ip_or_host_name, auto_discover, kvferry_reason());
}

void destroyTransferEngine(transfer_engine_t engine)
{
    ENTER_LOGGED();
    kvferry_go_destroy_logged(engine, kvferry_reason());
}

int discoverTopology(transfer_engine_t engine)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_discover(engine, kvferry_reason());
}

int getLocalIpAndPort(transfer_engine_t engine, char *buf_out, size_t buf_len)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_address(engine, buf_out, buf_len, kvferry_reason());
}

transport_t installTransport(transfer_engine_t engine, const char *proto, void **args)
{
    ENTER_LOGGED(NULL);
    (void)args;
    return kvferry_go_install(engine, proto, kvferry_reason());
}

int uninstallTransport(transfer_engine_t engine, const char *proto)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_uninstall(engine, proto, kvferry_reason());
}

segment_id_t openSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_open_segment(engine, segment_name, kvferry_reason());
}

segment_id_t openSegmentNoCache(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_open_segment_no_cache(engine, segment_name, kvferry_reason());
}

int closeSegment(transfer_engine_t engine, segment_id_t segment_id)
{
    ENTER_LOGGED(-FORKED_STATUS);
    (void)segment_id;
    return kvferry_go_close_segment(engine, kvferry_reason());
}

int warmupEfaSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_warmup(engine, segment_name, kvferry_reason());
}

int removeLocalSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_remove_segment(engine, segment_name, kvferry_reason());
}

int registerLocalMemory(transfer_engine_t engine, void *addr, size_t length, const char *location,
                        int remote_accessible)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_register(engine, addr, length, location, remote_accessible, kvferry_reason());
}

int unregisterLocalMemory(transfer_engine_t engine, void *addr)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_unregister(engine, addr, kvferry_reason());
}

int registerLocalMemoryBatch(transfer_engine_t engine, buffer_entry_t *buffer_list, size_t buffer_len,
                             const char *location)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_register_batch(engine, buffer_list, buffer_len, location, kvferry_reason());
}

int unregisterLocalMemoryBatch(transfer_engine_t engine, void **addr_list, size_t addr_len)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_unregister_batch(engine, addr_list, addr_len, kvferry_reason());
}

batch_id_t allocateBatchID(transfer_engine_t engine, size_t batch_size)
{
    ENTER_LOGGED(INVALID_BATCH);
    return kvferry_go_allocate_batch(engine, batch_size, kvferry_reason());
}

int submitTransfer(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries, size_t count)
{
    ENTER_LOGGED(FORKED_STATUS);
    return kvferry_go_submit(engine, batch_id, entries, count, kvferry_reason());
}

int submitTransferWithNotify(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries,
                             size_t count, notify_msg_t notify_msg)
{
    ENTER_LOGGED(FORKED_STATUS);
    return kvferry_go_submit_with_notify(engine, batch_id, entries, count, notify_msg.name, notify_msg.msg,
                                              kvferry_reason());
}

int getTransferStatus(transfer_engine_t engine, batch_id_t batch_id, size_t task_id, struct transfer_status *status)
{
    ENTER_LOGGED(FORKED_STATUS);
    return kvferry_go_task_status(engine, batch_id, task_id, status, kvferry_reason());
}

int freeBatchID(transfer_engine_t engine, batch_id_t batch_id)
{
    ENTER_LOGGED(FORKED_STATUS);
    return kvferry_go_free_batch(engine, batch_id, kvferry_reason());
}

notify_msg_t *getNotifsFromEngine(transfer_engine_t engine, int *size)
{
    notify_msg_t *list = NULL;

    if (size != NULL) {
        *size = 0;
    }
    ENTER_LOGGED(NULL);
    kvferry_go_take_notifications(engine, &list, size, kvferry_reason());
    return list;
}

int freeNotifsMsgBuf(notify_msg_t *msg, int size)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_free_notifications(msg, size, kvferry_reason());
}

int genNotifyInEngine(transfer_engine_t engine, uint64_t target_id, notify_msg_t notify_msg)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_send_notification(engine, target_id, notify_msg.name, notify_msg.msg, kvferry_reason());
}

int syncSegmentCache(transfer_engine_t engine)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_sync_segments(engine, kvferry_reason());
}

int getNicLoadStats(transfer_engine_t engine, nic_load_stat_t *stats, size_t *count)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_nic_load(engine, stats, count, kvferry_reason());
}

void enableGracefulShutdown(transfer_engine_t engine)
{
    ENTER_LOGGED();
    kvferry_go_enable_graceful_shutdown(engine, kvferry_reason());
}

int showLinks(transfer_engine_t engine, char *buf_out, size_t buf_len, int json)
{
    ENTER_LOGGED(-FORKED_STATUS);
    return kvferry_go_show_links(engine, buf_out, buf_len, json, kvferry_reason());
}
