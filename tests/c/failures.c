/* Every function of transfer_engine_c.h that fails logs one line, and those that succeed log none. The first argument is what
 * to do: "each" calls all of them in vain, "none" moves bytes, "asked" has an engine whose owner asks for the reasons,
 * "child" makes calls in a forked child. */
#include "check.h"

#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <transfer_engine_ext.h>

static char memory[64];

static transfer_engine_t make(void)
{
    return createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);
}

static void fail_each(transfer_engine_t engine)
{
    transfer_request_t request = {OPCODE_WRITE, memory, 12345, 1, 64};
    buffer_entry_t buffer = {NULL, 1};
    void *nowhere = NULL;
    notify_msg_t message = {(char *)"name", (char *)"text"};
    transfer_status_t status;
    nic_load_stat_t load;
    size_t count = 1;
    int size;

    CHECK(createTransferEngine("no-such-scheme://x", "127.0.0.1", "", 0, 1) == NULL);
    destroyTransferEngine(NULL);
    CHECK(discoverTopology(NULL) != 0);
    CHECK(getLocalIpAndPort(engine, NULL, 0) != 0);
    CHECK(installTransport(engine, "nvlink", NULL) == NULL);
    CHECK(uninstallTransport(engine, NULL) != 0);
    CHECK(openSegment(engine, "127.0.0.1:1") < 0);
    CHECK(openSegmentNoCache(engine, "127.0.0.1:1") < 0);
    CHECK(closeSegment(NULL, 0) != 0);
    CHECK(warmupEfaSegment(engine, NULL) != 0);
    CHECK(removeLocalSegment(engine, "") != 0);
    CHECK(syncSegmentCache(NULL) != 0);
    CHECK(registerLocalMemory(engine, NULL, 1, "cpu:0", 1) != 0);
    CHECK(unregisterLocalMemory(engine, memory) != 0);
    CHECK(registerLocalMemoryBatch(engine, &buffer, 1, "cpu:0") != 0);
    CHECK(unregisterLocalMemoryBatch(engine, &nowhere, 1) != 0);
    CHECK(allocateBatchID(engine, SIZE_MAX) == INVALID_BATCH);
    CHECK(submitTransfer(engine, 12345, &request, 1) != 0);
    CHECK(submitTransferWithNotify(engine, 12345, &request, 1, message) != 0);
    CHECK(getTransferStatus(engine, 12345, 0, &status) != 0);
    CHECK(freeBatchID(engine, 12345) != 0);
    CHECK(getNotifsFromEngine(engine, NULL) == NULL);
    CHECK(getNotifsFromEngine(NULL, &size) == NULL);
    CHECK(freeNotifsMsgBuf(NULL, 1) != 0);
    CHECK(genNotifyInEngine(engine, 12345, message) != 0);
    CHECK(getNicLoadStats(engine, NULL, &count) != 0);
    CHECK(getNicLoadStats(NULL, &load, &count) != 0);
    enableGracefulShutdown(NULL);
    CHECK(showLinks(engine, NULL, 0, 0) != 0);
}

static void succeed(transfer_engine_t engine)
{
    transfer_request_t request = {OPCODE_WRITE, memory, 0, (uint64_t)(uintptr_t)(memory + 32), 32};
    transfer_status_t status = {STATUS_WAITING, 0};
    batch_id_t batch = allocateBatchID(engine, 1);
    int size;

    CHECK_EQUAL(registerLocalMemory(engine, memory, sizeof memory, "cpu:0", 1), 0);
    CHECK_EQUAL(submitTransfer(engine, batch, &request, 1), 0);
    while (status.status == STATUS_WAITING) {
        CHECK_EQUAL(getTransferStatus(engine, batch, 0, &status), 0);
    }
    CHECK_EQUAL(status.status, STATUS_COMPLETED);
    CHECK_EQUAL(freeBatchID(engine, batch), 0);
    CHECK(getNotifsFromEngine(engine, &size) == NULL);
    CHECK_EQUAL(unregisterLocalMemory(engine, memory), 0);
}

static void fail_where_the_owner_asks(void)
{
    uint64_t made;

    CHECK_EQUAL(kvferry_call_wait(kvferry_start_engine("P2PHANDSHAKE", "127.0.0.1", ""), -1, &made), 0);
    CHECK(unregisterLocalMemory((transfer_engine_t)(uintptr_t)made, memory) != 0);
    CHECK(strstr(kvferry_last_error(), "registered") != NULL);
    destroyTransferEngine((transfer_engine_t)(uintptr_t)made);
}

static void fail_in_a_child(transfer_engine_t engine)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        _exit(discoverTopology(engine) == 0 || openSegment(engine, "x") >= 0);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "each";
    transfer_engine_t engine = make();

    CHECK(engine != NULL);
    if (strcmp(what, "each") == 0) {
        fail_each(engine);
    } else if (strcmp(what, "none") == 0) {
        succeed(engine);
    } else if (strcmp(what, "asked") == 0) {
        fail_where_the_owner_asks();
    } else {
        fail_in_a_child(engine);
    }
    destroyTransferEngine(engine);
    return 0;
}
