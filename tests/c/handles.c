/* Every function with an engine handle that is NULL, destroyed, or none of ours, and with NULL for what it points to. */
#include "check.h"

static unsigned char memory[4096];

/* Calls every function that takes an engine, and checks that each gives its error and a reason. */
static void check_refused(transfer_engine_t engine, batch_id_t batch)
{
    char text[64] = "untouched", word[] = "x";
    transfer_request_t r = request(OPCODE_WRITE, memory, 0, memory, 8);
    buffer_entry_t entry = {memory, sizeof memory};
    notify_msg_t message = {word, word};
    uint64_t number = 8, row[5] = {8, 8, 8, 8, 1};
    void *addr = memory;
    nic_load_stat_t load;
    size_t count = 1;
    transfer_status_t status;
    kvferry_batch_status_t all;
    batch_id_t made = 5;
    int size = 3;

    CHECK_EQUAL(discoverTopology(engine), -1);
    CHECK(strlen(kvferry_last_error()) > 10);
    CHECK_EQUAL(getLocalIpAndPort(engine, text, sizeof text), -1);
    CHECK(strcmp(text, "untouched") == 0);
    CHECK(installTransport(engine, "tcp", NULL) == NULL);
    CHECK_EQUAL(uninstallTransport(engine, "tcp"), -1);
    CHECK(openSegment(engine, "127.0.0.1:15000") < 0);
    CHECK(openSegmentNoCache(engine, "127.0.0.1:15000") < 0);
    CHECK_EQUAL(closeSegment(engine, 0), -1);
    CHECK_EQUAL(warmupEfaSegment(engine, "x"), -1);
    CHECK_EQUAL(removeLocalSegment(engine, "x"), -1);
    CHECK_EQUAL(registerLocalMemory(engine, memory, sizeof memory, "*", 1), -1);
    CHECK_EQUAL(unregisterLocalMemory(engine, memory), -1);
    CHECK_EQUAL(registerLocalMemoryBatch(engine, &entry, 1, "*"), -1);
    CHECK_EQUAL(unregisterLocalMemoryBatch(engine, &addr, 1), -1);
    CHECK_EQUAL(allocateBatchID(engine, 1), INVALID_BATCH);
    CHECK_EQUAL(submitTransfer(engine, batch, &r, 1), 1);
    CHECK_EQUAL(submitTransferWithNotify(engine, batch, &r, 1, message), 1);
    CHECK(getNotifsFromEngine(engine, &size) == NULL && size == 0);
    CHECK_EQUAL(genNotifyInEngine(engine, 0, message), -1);
    CHECK_EQUAL(getTransferStatus(engine, batch, 0, &status), 1);
    CHECK_EQUAL(freeBatchID(engine, batch), 1);
    CHECK_EQUAL(syncSegmentCache(engine), -1);
    CHECK_EQUAL(getNicLoadStats(engine, &load, &count), -1);
    enableGracefulShutdown(engine);
    CHECK_EQUAL(showLinks(engine, text, sizeof text, 0), -1);
    destroyTransferEngine(engine);

    CHECK_EQUAL(kvferry_destroy(engine), -1);
    CHECK_EQUAL(kvferry_rpc_port(engine), -1);
    CHECK_EQUAL(kvferry_register(engine, &entry, 1, "*", KVFERRY_ACCESS_REMOTE_READ), -1);
    CHECK_EQUAL(kvferry_transfer_timeout_ms(engine), -1);
    CHECK_EQUAL(kvferry_submit(engine, 1, 0, &number, &number, &number, 1, NULL, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    made = 5;
    CHECK_EQUAL(kvferry_transfer_sync(engine, 1, 0, &number, &number, &number, 1, NULL, 10, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 0, &number, &number, &number, 1), -1);
    made = 5;
    CHECK_EQUAL(kvferry_submit_pages(engine, 1, 0, &number, &number, 1, row, 1, 0, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    made = 5;
    CHECK_EQUAL(kvferry_transfer_pages(engine, 1, 0, &number, &number, 1, row, 1, 0, 10, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    made = 5;
    CHECK_EQUAL(kvferry_submit_scatter(engine, 1, "x", row, 1, &number, &number, &number, 1, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    made = 5;
    CHECK_EQUAL(kvferry_submit_plan(engine, 1, 0, engine, 0, 0, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    CHECK_EQUAL(kvferry_transfer_plan(engine, 1, 0, engine, 0, 0, 10, &made), -1);
    CHECK_EQUAL(kvferry_plan_transfers(engine), -1);
    CHECK_EQUAL(kvferry_plan_free(engine), -1);
    CHECK_EQUAL(kvferry_layout_free(engine), -1);
    CHECK(kvferry_offer_make(engine, NULL, KVFERRY_OFFER_READ, 0) == NULL);
    CHECK_EQUAL(kvferry_offer_text(engine, text, sizeof text), -1);
    CHECK_EQUAL(kvferry_offer_revoke(engine), -1);
    CHECK_EQUAL(kvferry_offer_free(engine), -1);
    CHECK_EQUAL(kvferry_offered_engine(engine, text, sizeof text), -1);
    CHECK_EQUAL(kvferry_offered_free(engine), -1);
    CHECK_EQUAL(kvferry_batch_bytes(engine, batch), 0);
    CHECK_EQUAL(kvferry_batch_cancel(engine, batch), -1);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 10), -1);
    CHECK_EQUAL(kvferry_batch_status(engine, batch, &all), -1);
    CHECK_EQUAL(kvferry_batch_error(engine, batch, text, sizeof text), -1);
    CHECK_EQUAL(kvferry_batch_discard(engine, batch), -1);
    CHECK_EQUAL(kvferry_unregister(engine, &number), -1);
    CHECK_EQUAL(kvferry_batches_wait(engine, &batch, 1, 10), -1);
    made = 5;
    CHECK_EQUAL(kvferry_start(engine, NULL, 0, &made), -1);
    CHECK_EQUAL(made, INVALID_BATCH);
    CHECK_EQUAL(kvferry_completions_fd(engine), -1);
    CHECK_EQUAL(kvferry_completions_next(engine, &made, 1), -1);
    CHECK_EQUAL(kvferry_batch_progress(engine, batch, NULL), -1);
    CHECK_EQUAL(kvferry_batch_failure(engine, batch, NULL, 0, NULL, 0), -1);
    CHECK_EQUAL(kvferry_batch_outcome(engine, batch, NULL, 0), -1);
    CHECK_EQUAL(kvferry_open_segment(engine, "127.0.0.1:15000", -1), -1);
    CHECK_EQUAL(kvferry_probe(engine, "x"), -1);
    CHECK_EQUAL(kvferry_first_buffer(engine, "x"), 0);
    CHECK_EQUAL(kvferry_metadata_server_stop(engine), -1);
}

static void test_null_and_foreign_handles_are_refused(void)
{
    int foreign = 0;

    check_refused(NULL, 1);
    check_refused(&foreign, 1);
    check_refused((transfer_engine_t)(uintptr_t)8, 1);
    check_refused((transfer_engine_t)UINTPTR_MAX, INVALID_BATCH);
}

static void test_transport_handle_is_no_engine(void)
{
    transfer_engine_t engine = make_engine();
    transport_t transport = installTransport(engine, "tcp", NULL);

    CHECK(transport != NULL);
    check_refused(transport, 1);
    destroyTransferEngine(engine);
    check_refused(transport, 1);
}

static void test_destroyed_engine_is_refused_also_after_others_were_made(void)
{
    transfer_engine_t engine = make_engine(), others[20];
    batch_id_t batch = allocateBatchID(engine, 1);
    int i;

    destroyTransferEngine(engine);
    check_refused(engine, batch);
    for (i = 0; i < 20; i++) {
        others[i] = make_engine();
        CHECK(others[i] != engine);
    }
    check_refused(engine, batch);
    for (i = 0; i < 20; i++) {
        CHECK_EQUAL(discoverTopology(others[i]), 0);
        destroyTransferEngine(others[i]);
    }
}

static void test_metadata_server_is_stopped_once_and_is_no_engine(void)
{
    kvferry_metadata_server_options_t options = {0};
    char address[100];
    transfer_engine_t engine = make_engine();
    kvferry_metadata_server_t server;

    options.host = "127.0.0.1";
    server = kvferry_metadata_server_start(&options, address, sizeof address);
    CHECK(server != NULL);
    CHECK(strncmp(address, "http://127.0.0.1:", 17) == 0 && strstr(address, "/metadata") != NULL);
    CHECK_EQUAL(discoverTopology(server), -1);
    destroyTransferEngine(server);
    CHECK_EQUAL(kvferry_metadata_server_stop(engine), -1);
    CHECK_EQUAL(kvferry_metadata_server_stop(server), 0);
    check_refused(server, 1);
    CHECK_EQUAL(discoverTopology(engine), 0);
    destroyTransferEngine(engine);

    options.max_keys = UINT64_MAX;
    CHECK(kvferry_metadata_server_start(&options, address, sizeof address) == NULL);
    CHECK(strstr(kvferry_last_error(), "number of keys") != NULL);
    options.max_keys = 0;
    CHECK(kvferry_metadata_server_start(NULL, address, sizeof address) == NULL);
    CHECK(kvferry_metadata_server_start(&options, NULL, 10) == NULL);
    CHECK(kvferry_metadata_server_start(&options, address, 0) == NULL);
    CHECK(strstr(kvferry_last_error(), "no room") != NULL);
}

static void test_null_arguments_are_refused(void)
{
    transfer_engine_t engine = make_engine();
    batch_id_t batch = allocateBatchID(engine, 2), made = 5;
    transfer_request_t r = request(OPCODE_WRITE, memory, LOCAL_SEGMENT, memory, 8);
    char text[8], word[] = "x", long_name[5000] = "";
    int64_t limit;
    segment_id_t opened;
    notify_msg_t nameless = {NULL, word}, silent = {word, NULL};
    uint64_t number = 8;
    size_t count = 1;
    nic_load_stat_t load;
    void *nothing[2] = {NULL, NULL};

    CHECK(createTransferEngine(NULL, "127.0.0.1", "", 0, 1) == NULL);
    CHECK(createTransferEngine("P2PHANDSHAKE", NULL, "", 0, 1) == NULL);
    CHECK(createTransferEngine("P2PHANDSHAKE", "127.0.0.1", NULL, 0, 1) == NULL);
    CHECK_EQUAL(getLocalIpAndPort(engine, NULL, 10), -1);
    CHECK_EQUAL(getLocalIpAndPort(engine, text, 0), -1);
    CHECK(installTransport(engine, NULL, NULL) == NULL);
    CHECK(installTransport(engine, "tcp", nothing) != NULL);
    CHECK_EQUAL(uninstallTransport(engine, NULL), -1);
    CHECK(openSegment(engine, NULL) < 0);
    CHECK(openSegment(engine, "") < 0);
    CHECK(openSegmentNoCache(engine, NULL) < 0);
    CHECK_EQUAL(warmupEfaSegment(engine, NULL), -1);
    CHECK_EQUAL(removeLocalSegment(engine, NULL), -1);
    CHECK_EQUAL(removeLocalSegment(engine, ""), -1);
    CHECK_EQUAL(registerLocalMemory(engine, NULL, 10, "*", 1), -1);
    CHECK_EQUAL(registerLocalMemory(engine, memory, sizeof memory, NULL, 1), 0);
    CHECK_EQUAL(unregisterLocalMemory(engine, NULL), -3);
    CHECK_EQUAL(registerLocalMemoryBatch(engine, NULL, 2, "*"), -1);
    CHECK_EQUAL(registerLocalMemoryBatch(engine, NULL, 0, "*"), 0);
    CHECK_EQUAL(kvferry_register(engine, NULL, 2, "*", KVFERRY_ACCESS_NONE), -1);
    CHECK_EQUAL(kvferry_register(engine, NULL, 0, NULL, KVFERRY_ACCESS_NONE), 0);
    CHECK_EQUAL(unregisterLocalMemoryBatch(engine, NULL, 2), -1);
    CHECK_EQUAL(unregisterLocalMemoryBatch(engine, NULL, 0), 0);
    CHECK_EQUAL(submitTransfer(engine, batch, NULL, 2), 1);
    CHECK_EQUAL(submitTransferWithNotify(engine, batch, &r, 1, nameless), 1);
    CHECK_EQUAL(submitTransferWithNotify(engine, batch, &r, 1, silent), 1);
    CHECK(getNotifsFromEngine(engine, NULL) == NULL);
    CHECK_EQUAL(freeNotifsMsgBuf(NULL, 0), 0);
    CHECK_EQUAL(freeNotifsMsgBuf(NULL, 3), -1);
    CHECK_EQUAL(freeNotifsMsgBuf(NULL, -1), -1);
    CHECK_EQUAL(genNotifyInEngine(engine, 0, nameless), -1);
    CHECK_EQUAL(genNotifyInEngine(engine, 0, silent), -1);
    CHECK_EQUAL(submitTransfer(engine, batch, &r, 1), 0);
    CHECK_EQUAL(getTransferStatus(engine, batch, 0, NULL), 1);
    CHECK_EQUAL(getNicLoadStats(engine, NULL, &count), -1);
    CHECK_EQUAL(getNicLoadStats(engine, &load, NULL), -1);
    CHECK_EQUAL(showLinks(engine, NULL, 10, 0), -1);
    CHECK_EQUAL(showLinks(engine, text, 0, 0), -1);

    CHECK_EQUAL(kvferry_submit(engine, 1, 0, &number, &number, &number, 1, NULL, NULL), -1);
    CHECK_EQUAL(kvferry_submit(engine, 1, 0, NULL, &number, &number, 1, NULL, &made), -1);
    CHECK_EQUAL(kvferry_submit(engine, 1, 0, &number, NULL, &number, 1, NULL, &made), -1);
    CHECK_EQUAL(kvferry_submit(engine, 1, 0, &number, &number, NULL, 1, NULL, &made), -1);
    CHECK_EQUAL(kvferry_submit(engine, 1, 0, &number, &number, &number, 1, &nameless, &made), -1);
    CHECK_EQUAL(kvferry_transfer_sync(engine, 1, 0, &number, &number, &number, 1, NULL, 0, NULL), -1);
    CHECK_EQUAL(kvferry_transfer_sync(engine, 1, 0, NULL, NULL, NULL, 1, NULL, 0, &made), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, NULL, NULL, 1, 0, &number, &number, &number, 1), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 0, NULL, &number, &number, 1), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 0, &number, NULL, &number, 1), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 0, &number, &number, NULL, 1), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 0, &number, &number, &number, SIZE_MAX), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 7, 0, &number, &number, &number, 1), -1);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 4711, &number, &number, &number, 1), -1);
    CHECK(kvferry_transfer_on_stream(engine, "abacus", NULL, 1, 0, &number, &number, &number, 1) < 0);
    CHECK(strstr(kvferry_last_error(), "no streams of \"abacus\"") != NULL);
    CHECK_EQUAL(kvferry_transfer_on_stream(engine, "abacus", NULL, 1, 4711, NULL, NULL, NULL, 0), 0);
    CHECK_EQUAL(kvferry_batch_status(engine, batch, NULL), -1);
    CHECK_EQUAL(kvferry_batch_error(engine, batch, NULL, 10), -1);
    CHECK_EQUAL(kvferry_batch_error(engine, batch, text, 0), -1);
    CHECK_EQUAL(kvferry_batches_wait(engine, NULL, 1, 10), -1);
    CHECK_EQUAL(kvferry_batches_wait(engine, &batch, SIZE_MAX, 10), -1);
    CHECK_EQUAL(kvferry_open_segment(engine, NULL, -1), -1);
    for (limit = -1; limit <= 0; limit++) {
        CHECK_EQUAL(kvferry_open_segment(engine, "", limit), -1);
        CHECK(strstr(kvferry_last_error(), "the segment name is empty") != NULL);
    }
    opened = kvferry_open_segment(engine, memset(long_name, 'x', sizeof long_name - 1), 0);
    CHECK(opened == KVFERRY_ERR_TIMED_OUT || opened == -1); /* whichever is noticed first */
    CHECK(strlen(kvferry_last_error()) < 1000);
    CHECK_EQUAL(kvferry_probe(engine, NULL), -1);
    CHECK_EQUAL(kvferry_first_buffer(engine, NULL), 0);
    destroyTransferEngine(engine);
}

static void test_reason_is_of_the_calling_threads_latest_failure(void)
{
    transfer_engine_t engine = make_engine();

    CHECK(openSegment(engine, NULL) < 0);
    CHECK(strstr(kvferry_last_error(), "segment name is NULL") != NULL);
    CHECK_EQUAL(discoverTopology(engine), 0);
    CHECK(strstr(kvferry_last_error(), "segment name is NULL") != NULL);
    CHECK(createTransferEngine("nosuchscheme://x", "127.0.0.1", "", 0, 1) == NULL);
    CHECK(strstr(kvferry_last_error(), "nosuchscheme") != NULL);
    destroyTransferEngine(engine);
}

static void test_reason_is_cut_between_characters(void)
{
    transfer_engine_t engine = make_engine();
    char name[4002];
    size_t i, length;

    for (i = 0; i + 2 < sizeof name; i += 2) {
        name[i] = '\xc3';
        name[i + 1] = '\xa4';
    }
    name[sizeof name - 2] = 0;
    CHECK(installTransport(engine, name, NULL) == NULL);
    length = strlen(kvferry_last_error());
    CHECK(length < 1024);
    CHECK(length < 4 || ((unsigned char)kvferry_last_error()[length - 1] & 0xc0) != 0xc0);
    destroyTransferEngine(engine);
}

static void test_a_log_line_needs_a_text_and_a_level(void)
{
    CHECK(kvferry_log(KVFERRY_LOG_ERROR, NULL) < 0);
    CHECK(strstr(kvferry_last_error(), "text of a log line is NULL") != NULL);
    CHECK(kvferry_log(KVFERRY_LOG_ERROR + 1, "x") < 0);
    CHECK(strstr(kvferry_last_error(), "no log level 4") != NULL);
    CHECK(kvferry_log(-1, "x") < 0);
    CHECK(kvferry_log(KVFERRY_LOG_TRACE, "x") == 0);
}

int main(void)
{
    CHECK(strcmp(kvferry_last_error(), "") == 0);
    CHECK(strlen(kvferry_version()) >= 5);
    test_null_and_foreign_handles_are_refused();
    test_transport_handle_is_no_engine();
    test_destroyed_engine_is_refused_also_after_others_were_made();
    test_metadata_server_is_stopped_once_and_is_no_engine();
    test_null_arguments_are_refused();
    test_reason_is_of_the_calling_threads_latest_failure();
    test_reason_is_cut_between_characters();
    test_a_log_line_needs_a_text_and_a_level();
    return 0;
}
