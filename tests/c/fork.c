/* In a child that was forked after the library was loaded every call fails at once and says why; the parent goes on. */
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

static unsigned char near[4096], far[4096];

#define CHECK_FORKED(got, wanted)                                   \
    do {                                                            \
        CHECK_EQUAL(got, wanted);                                   \
        CHECK(strstr(kvferry_last_error(), "forked") != NULL);      \
    } while (0)

static void check_child(transfer_engine_t engine, batch_id_t batch, segment_id_t id, kvferry_metadata_server_t server)
{
    char text[64], word[] = "x";
    transfer_request_t r = request(OPCODE_WRITE, near, id, far, 8);
    buffer_entry_t entry = {near, sizeof near};
    notify_msg_t message = {word, word};
    uint64_t number = 8;
    void *addr = near;
    nic_load_stat_t load;
    size_t count = 1;
    transfer_status_t status;
    kvferry_batch_status_t all;
    kvferry_stats_t stats;
    batch_id_t made = 5;
    kvferry_metadata_server_options_t options = {0};
    int size = 3;

    CHECK(createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1) == NULL);
    CHECK_FORKED(discoverTopology(engine), -202);
    CHECK_FORKED(getLocalIpAndPort(engine, text, sizeof text), -202);
    CHECK(installTransport(engine, "tcp", NULL) == NULL);
    CHECK_FORKED(uninstallTransport(engine, "tcp"), -202);
    CHECK_FORKED(openSegment(engine, "127.0.0.1:15000"), -202);
    CHECK_FORKED(openSegmentNoCache(engine, "127.0.0.1:15000"), -202);
    CHECK_FORKED(closeSegment(engine, 0), -202);
    CHECK_FORKED(warmupEfaSegment(engine, "x"), -202);
    CHECK_FORKED(removeLocalSegment(engine, "x"), -202);
    CHECK_FORKED(registerLocalMemory(engine, near, sizeof near, "*", 1), -202);
    CHECK_FORKED(unregisterLocalMemory(engine, near), -202);
    CHECK_FORKED(registerLocalMemoryBatch(engine, &entry, 1, "*"), -202);
    CHECK_FORKED(unregisterLocalMemoryBatch(engine, &addr, 1), -202);
    CHECK_FORKED(allocateBatchID(engine, 1), INVALID_BATCH);
    CHECK_FORKED(submitTransfer(engine, batch, &r, 1), 202);
    CHECK_FORKED(submitTransferWithNotify(engine, batch, &r, 1, message), 202);
    CHECK(getNotifsFromEngine(engine, &size) == NULL && size == 0);
    CHECK_FORKED(freeNotifsMsgBuf(NULL, 0), -202);
    CHECK_FORKED(genNotifyInEngine(engine, 0, message), -202);
    CHECK_FORKED(getTransferStatus(engine, batch, 0, &status), 202);
    CHECK_FORKED(freeBatchID(engine, batch), 202);
    CHECK_FORKED(syncSegmentCache(engine), -202);
    CHECK_FORKED(getNicLoadStats(engine, &load, &count), -202);
    enableGracefulShutdown(engine);
    CHECK_FORKED(showLinks(engine, text, sizeof text, 0), -202);
    destroyTransferEngine(engine);

    CHECK_FORKED(kvferry_destroy(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_rpc_port(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_register(engine, &entry, 1, "*", KVFERRY_ACCESS_REMOTE_READ), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_transfer_timeout_ms(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_stats(engine, &stats, sizeof stats), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_stats_json(engine, text, sizeof text), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_settings_json(text, sizeof text), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_submit(engine, 1, 0, &number, &number, &number, 1, NULL, &made), KVFERRY_ERR_FORKED);
    CHECK_EQUAL(made, INVALID_BATCH);
    CHECK_FORKED(kvferry_transfer_sync(engine, 1, 0, &number, &number, &number, 1, NULL, 10, &made),
                 KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_transfer_on_stream(engine, "cuda", NULL, 1, 0, &number, &number, &number, 1),
                 KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_wait(engine, batch, -1), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_status(engine, batch, &all), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_error(engine, batch, text, sizeof text), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_discard(engine, batch), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_unregister(engine, near), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batches_wait(engine, &batch, 1, -1), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_start(engine, NULL, 0, &made), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_completions_fd(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_completions_next(engine, &made, 1), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_progress(engine, batch, NULL), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_failure(engine, batch, NULL, 0, NULL, 0), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_batch_outcome(engine, batch, NULL, 0), KVFERRY_ERR_FORKED);
    CHECK(kvferry_start_engine_with("P2PHANDSHAKE", "127.0.0.1", "", NULL, 0) == NULL);
    CHECK_FORKED(kvferry_open_segment(engine, "x", -1), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_probe(engine, "x"), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_first_buffer(engine, "x"), 0);
    CHECK_FORKED(kvferry_copy(near, far, 1), KVFERRY_ERR_FORKED);
    CHECK(kvferry_metadata_server_start(&options, text, sizeof text) == NULL);
    CHECK_FORKED(kvferry_metadata_server_stop(server), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_log(KVFERRY_LOG_ERROR, "x"), KVFERRY_ERR_FORKED);
    CHECK(kvferry_layout_parse("{}", 2) == NULL);
    CHECK_FORKED(kvferry_layout_free(engine), KVFERRY_ERR_FORKED);
    CHECK(kvferry_plan_make(NULL, 0, NULL, 0, 0, 0) == NULL);
    CHECK_FORKED(kvferry_plan_free(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_plan_transfers(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_plan_transfer(engine, 0, NULL), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_submit_plan(engine, 1, 0, engine, 0, 0, &made), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_transfer_plan(engine, 1, 0, engine, 0, 0, 10, &made), KVFERRY_ERR_FORKED);
    CHECK(kvferry_offer_make(engine, NULL, KVFERRY_OFFER_READ, 0) == NULL);
    CHECK_FORKED(kvferry_offer_text(engine, text, sizeof text), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_offer_revoke(engine), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_offer_free(engine), KVFERRY_ERR_FORKED);
    CHECK(kvferry_offered_parse("{}", 2) == NULL);
    CHECK_FORKED(kvferry_offered_engine(engine, text, sizeof text), KVFERRY_ERR_FORKED);
    CHECK_FORKED(kvferry_offered_free(engine), KVFERRY_ERR_FORKED);
    CHECK(strlen(kvferry_version()) >= 5);
}

/* Runs check_child in a child, and in a grandchild, and waits for it. */
static void check_fork(transfer_engine_t engine, batch_id_t batch, segment_id_t id, kvferry_metadata_server_t server)
{
    pid_t child = fork();
    int ended;

    CHECK(child >= 0);
    if (child == 0) {
        check_child(engine, batch, id, server);
        child = fork();
        if (child == 0) {
            check_child(engine, batch, id, server);
            exit(0);
        }
        CHECK(waitpid(child, &ended, 0) == child && ended == 0);
        exit(0);
    }
    CHECK(waitpid(child, &ended, 0) == child);
    CHECK_EQUAL(ended, 0);
}

int main(void)
{
    transfer_engine_t engine = make_engine(), target = make_engine();
    segment_id_t id = open_peer(engine, target);
    batch_id_t batch;
    kvferry_metadata_server_options_t options = {0};
    char address[100];
    kvferry_metadata_server_t server = kvferry_metadata_server_start(&options, address, sizeof address);

    CHECK(server != NULL);
    CHECK_EQUAL(registerLocalMemory(target, far, sizeof far, "*", 1), 0);
    batch = start(engine, OPCODE_WRITE, near, id, far, sizeof near);
    check_fork(engine, batch, id, server);
    CHECK_EQUAL(outcome(engine, batch, 0), STATUS_COMPLETED);
    CHECK_EQUAL(freeBatchID(engine, batch), 0);
    CHECK_EQUAL(move(engine, OPCODE_READ, near, id, far, sizeof near), STATUS_COMPLETED);
    CHECK_EQUAL(kvferry_metadata_server_stop(server), 0);
    destroyTransferEngine(engine);
    destroyTransferEngine(target);
    return 0;
}
