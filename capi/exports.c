/* The functions of transfer_engine_c.h: each refuses a forked child and hands the call to Go. */
#include "_cgo_export.h"
#include "internal.h"

transfer_engine_t createTransferEngine(const char *metadata_conn_string, const char *local_server_name,
                                       const char *ip_or_host_name, uint64_t rpc_port, int auto_discover)
{
    ENTER(NULL);
    (void)rpc_port;
    return kvferry_go_create(metadata_conn_string, local_server_name, ip_or_host_name, auto_discover, kvferry_reason());
}

void destroyTransferEngine(transfer_engine_t engine)
{
    ENTER();
    kvferry_go_destroy(engine, kvferry_reason());
}

int discoverTopology(transfer_engine_t engine)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_is_live(engine, kvferry_reason());
}

int getLocalIpAndPort(transfer_engine_t engine, char *buf_out, size_t buf_len)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_address(engine, buf_out, buf_len, kvferry_reason());
}

transport_t installTransport(transfer_engine_t engine, const char *proto, void **args)
{
    ENTER(NULL);
    (void)args;
    return kvferry_go_install(engine, proto, kvferry_reason());
}

int uninstallTransport(transfer_engine_t engine, const char *proto)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_uninstall(engine, proto, kvferry_reason());
}

segment_id_t openSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_open_segment(engine, segment_name, 1, kvferry_reason());
}

segment_id_t openSegmentNoCache(transfer_engine_t engine, const char *segment_name)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_open_segment(engine, segment_name, 0, kvferry_reason());
}

int closeSegment(transfer_engine_t engine, segment_id_t segment_id)
{
    ENTER(-FORKED_STATUS);
    (void)segment_id;
    return kvferry_go_is_live(engine, kvferry_reason());
}

int warmupEfaSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_warmup(engine, segment_name, kvferry_reason());
}

int removeLocalSegment(transfer_engine_t engine, const char *segment_name)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_remove_segment(engine, segment_name, kvferry_reason());
}

int registerLocalMemory(transfer_engine_t engine, void *addr, size_t length, const char *location,
                        int remote_accessible)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_register(engine, addr, length, location, remote_accessible, kvferry_reason());
}

int unregisterLocalMemory(transfer_engine_t engine, void *addr)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_unregister(engine, addr, kvferry_reason());
}

int registerLocalMemoryBatch(transfer_engine_t engine, buffer_entry_t *buffer_list, size_t buffer_len,
                             const char *location)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_register_batch(engine, buffer_list, buffer_len, location, kvferry_reason());
}

int unregisterLocalMemoryBatch(transfer_engine_t engine, void **addr_list, size_t addr_len)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_unregister_batch(engine, addr_list, addr_len, kvferry_reason());
}

batch_id_t allocateBatchID(transfer_engine_t engine, size_t batch_size)
{
    ENTER(INVALID_BATCH);
    return kvferry_go_allocate_batch(engine, batch_size, kvferry_reason());
}

int submitTransfer(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries, size_t count)
{
    ENTER(FORKED_STATUS);
    return kvferry_go_submit(engine, batch_id, entries, count, kvferry_reason());
}

int submitTransferWithNotify(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries,
                             size_t count, notify_msg_t notify_msg)
{
    ENTER(FORKED_STATUS);
    return kvferry_go_submit_with_notify(engine, batch_id, entries, count, notify_msg.name, notify_msg.msg,
                                         kvferry_reason());
}

int getTransferStatus(transfer_engine_t engine, batch_id_t batch_id, size_t task_id, struct transfer_status *status)
{
    ENTER(FORKED_STATUS);
    return kvferry_go_task_status(engine, batch_id, task_id, status, kvferry_reason());
}

int freeBatchID(transfer_engine_t engine, batch_id_t batch_id)
{
    ENTER(FORKED_STATUS);
    return kvferry_go_free_batch(engine, batch_id, kvferry_reason());
}

notify_msg_t *getNotifsFromEngine(transfer_engine_t engine, int *size)
{
    if (size != NULL) {
        *size = 0;
    }
    ENTER(NULL);
    return kvferry_go_take_notifications(engine, size, kvferry_reason());
}

int freeNotifsMsgBuf(notify_msg_t *msg, int size)
{
    int i;

    ENTER(-FORKED_STATUS);
    if (size < 0 || (msg == NULL && size > 0)) {
        kvferry_explain("%d notifications at %p cannot be freed", size, (void *)msg);
        return -1;
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
    ENTER(-FORKED_STATUS);
    return kvferry_go_send_notification(engine, target_id, notify_msg.name, notify_msg.msg, kvferry_reason());
}

int syncSegmentCache(transfer_engine_t engine)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_sync_segments(engine, kvferry_reason());
}

int getNicLoadStats(transfer_engine_t engine, nic_load_stat_t *stats, size_t *count)
{
    int code;

    ENTER(-FORKED_STATUS);
    if (stats == NULL || count == NULL) {
        kvferry_explain("there is no room for load figures: NULL");
        return -1;
    }
    code = kvferry_go_is_live(engine, kvferry_reason());
    if (code == 0) {
        *count = 0;
    }
    return code;
}

void enableGracefulShutdown(transfer_engine_t engine)
{
    ENTER();
    kvferry_go_enable_graceful_shutdown(engine, kvferry_reason());
}

int showLinks(transfer_engine_t engine, char *buf_out, size_t buf_len, int json)
{
    ENTER(-FORKED_STATUS);
    return kvferry_go_show_links(engine, buf_out, buf_len, json, kvferry_reason());
}
