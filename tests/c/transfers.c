/* Batches, tasks and their states, as the interface defines them, between two engines of this process. */
#include "check.h"

enum { SIZE = 1 << 20 };

static unsigned char near[SIZE], far[SIZE];
static transfer_engine_t initiator, target;
static segment_id_t peer;

static void test_bytes_arrive_both_ways(void)
{
    unsigned char wanted[5000];

    fill(near, SIZE, 1);
    memset(far, 0, SIZE);
    CHECK_EQUAL(move(initiator, OPCODE_WRITE, near + 3, peer, far + 7, 5000), STATUS_COMPLETED);
    CHECK(memcmp(near + 3, far + 7, 5000) == 0);
    CHECK(far[6] == 0 && far[7 + 5000] == 0);

    fill(far, SIZE, 2);
    memcpy(wanted, far + 100, 5000);
    memset(near, 0, SIZE);
    CHECK_EQUAL(move(initiator, OPCODE_READ, near + 50, peer, far + 100, 5000), STATUS_COMPLETED);
    CHECK(memcmp(near + 50, wanted, 5000) == 0);
    CHECK(near[49] == 0 && near[50 + 5000] == 0);
}

static void test_own_segment_is_a_copy(void)
{
    char name[128];

    CHECK_EQUAL(getLocalIpAndPort(target, name, sizeof name), 0);
    CHECK_EQUAL(openSegment(target, name), LOCAL_SEGMENT);
    fill(near, SIZE, 3);
    CHECK_EQUAL(move(target, OPCODE_WRITE, near, LOCAL_SEGMENT, far, SIZE), STATUS_COMPLETED);
    CHECK(memcmp(near, far, SIZE) == 0);
}

static void test_task_ids_count_on_over_submits(void)
{
    batch_id_t batch = allocateBatchID(initiator, 3);
    transfer_request_t r[2];
    transfer_status_t status;

    CHECK(batch >= 1 && batch <= INT64_MAX);
    r[0] = request(OPCODE_WRITE, near, peer, far, 10);
    r[1] = request(OPCODE_WRITE, near, peer, far + 100, 20);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 2), 0);
    r[0].length = 30;
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 1), 0);
    memset(r, 0xff, sizeof r);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 20000), 0);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 2, &status), 0);
    CHECK_EQUAL(status.status, STATUS_COMPLETED);
    CHECK_EQUAL(status.transferred_bytes, 30);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 1, &status), 0);
    CHECK_EQUAL(status.transferred_bytes, 20);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 1, &status), 0);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
}

static void test_status_is_untouched_on_error(void)
{
    batch_id_t batch = allocateBatchID(initiator, 1);
    transfer_status_t status = {77, 88};

    CHECK_EQUAL(getTransferStatus(initiator, batch, 0, &status), 1);
    CHECK_EQUAL(getTransferStatus(initiator, batch, SIZE_MAX, &status), 1);
    CHECK_EQUAL(getTransferStatus(initiator, INVALID_BATCH, 0, &status), 1);
    CHECK_EQUAL(getTransferStatus(initiator, 0, 0, &status), 1);
    CHECK(status.status == 77 && status.transferred_bytes == 88);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
}

static void test_batch_takes_no_more_than_its_capacity(void)
{
    batch_id_t batch = allocateBatchID(initiator, 1);
    batch_id_t empty = allocateBatchID(initiator, 0);
    transfer_request_t r[2];
    transfer_status_t status;

    r[0] = r[1] = request(OPCODE_WRITE, near, peer, far, 10);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 2), 2);
    CHECK(strlen(kvferry_last_error()) > 0);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 0, &status), 1);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 1), 0);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 1), 2);
    CHECK_EQUAL(outcome(initiator, batch, 0), STATUS_COMPLETED);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);

    CHECK_EQUAL(submitTransfer(initiator, empty, r, 0), 0);
    CHECK_EQUAL(submitTransfer(initiator, empty, NULL, 0), 0);
    CHECK_EQUAL(submitTransfer(initiator, empty, r, 1), 2);
    CHECK_EQUAL(freeBatchID(initiator, empty), 0);
}

static void test_absurd_counts_are_refused(void)
{
    batch_id_t batch = allocateBatchID(initiator, 1);
    transfer_request_t r = request(OPCODE_WRITE, near, peer, far, 10);

    CHECK(submitTransfer(initiator, batch, &r, SIZE_MAX) != 0);
    CHECK(submitTransfer(initiator, batch, &r, SIZE_MAX / sizeof r) != 0);
    CHECK_EQUAL(submitTransfer(initiator, batch, &r, (size_t)1 << 30), 2);
    CHECK_EQUAL(allocateBatchID(initiator, SIZE_MAX), INVALID_BATCH);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
}

static void test_bad_requests_submit_nothing(void)
{
    batch_id_t batch = allocateBatchID(initiator, 4);
    transfer_request_t r[2];
    transfer_status_t status;

    r[0] = request(OPCODE_WRITE, near, peer, far, 10);
    r[1] = request(2, near, peer, far, 10);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 2), 1);
    r[1] = request(-1, near, peer, far, 10);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 2), 1);
    r[1] = request(OPCODE_READ, near, 4711, far, 10);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 2), 1);
    r[1] = request(OPCODE_READ, near, -1, far, 10);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 2), 1);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 0, &status), 1);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
}

static void test_a_message_that_is_too_long_is_refused(void)
{
    const size_t length = 2 << 20; /* the default limit is 1 MiB */
    char *text = malloc(length + 1);
    notify_msg_t message = {(char *)"name", text};
    batch_id_t batch = allocateBatchID(initiator, 1);
    transfer_request_t r = request(OPCODE_WRITE, near, peer, far, 10);
    uint64_t local = (uintptr_t)near, remote = (uintptr_t)far, ten = 10;
    transfer_status_t status;

    CHECK(text != NULL);
    memset(text, 'a', length);
    text[length] = 0;
    CHECK_EQUAL(submitTransferWithNotify(initiator, batch, &r, 1, message), 1);
    CHECK(strstr(kvferry_last_error(), "MC_HANDSHAKE_MAX_LENGTH") != NULL);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 0, &status), 1);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
    CHECK_EQUAL(kvferry_transfer_sync(initiator, OPCODE_WRITE, peer, &local, &remote, &ten, 1, &message, 20000, &batch), -1);
    CHECK(strstr(kvferry_last_error(), "MC_HANDSHAKE_MAX_LENGTH") != NULL);
    CHECK_EQUAL(batch, INVALID_BATCH);
    free(text);
}

static void test_bad_target_range_fails_its_own_task_only(void)
{
    batch_id_t batch = allocateBatchID(initiator, 4);
    kvferry_batch_status_t all;
    transfer_request_t r[4];
    char reason[256];

    r[0] = request(OPCODE_WRITE, near, peer, far, 10);
    r[1] = request(OPCODE_WRITE, near, peer, far + SIZE - 5, 10);
    r[2] = request(OPCODE_WRITE, near, peer, far + 500, 10);
    r[3] = request(OPCODE_READ, NULL, peer, NULL, 0);
    CHECK_EQUAL(submitTransfer(initiator, batch, r, 4), 0);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 20000), KVFERRY_ERR_FAILED);
    CHECK_EQUAL(outcome(initiator, batch, 0), STATUS_COMPLETED);
    CHECK_EQUAL(outcome(initiator, batch, 1), STATUS_FAILED);
    CHECK_EQUAL(outcome(initiator, batch, 2), STATUS_COMPLETED);
    CHECK_EQUAL(outcome(initiator, batch, 3), STATUS_COMPLETED);
    CHECK_EQUAL(kvferry_batch_status(initiator, batch, &all), 0);
    CHECK(all.tasks == 4 && all.completed == 3 && all.failed == 1 && all.timed_out == 0 && all.bytes == 20);
    CHECK_EQUAL(kvferry_batch_error(initiator, batch, reason, sizeof reason), 0);
    CHECK(strstr(reason, "127.0.0.1") != NULL);
    CHECK_EQUAL(kvferry_batch_error(initiator, batch, reason, 5), 0);
    CHECK_EQUAL(strlen(reason), 4);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
}

static void test_freed_batch_is_gone(void)
{
    batch_id_t batch = start(initiator, OPCODE_WRITE, near, peer, far, 10);
    transfer_request_t r = request(OPCODE_WRITE, near, peer, far, 10);
    kvferry_batch_status_t all;
    transfer_status_t status;
    char reason[10];

    CHECK_EQUAL(outcome(initiator, batch, 0), STATUS_COMPLETED);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
    CHECK_EQUAL(freeBatchID(initiator, batch), 1);
    CHECK_EQUAL(submitTransfer(initiator, batch, &r, 1), 1);
    CHECK_EQUAL(getTransferStatus(initiator, batch, 0, &status), 1);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 0), -1);
    CHECK_EQUAL(kvferry_batch_status(initiator, batch, &all), -1);
    CHECK_EQUAL(kvferry_batch_error(initiator, batch, reason, sizeof reason), -1);
    CHECK_EQUAL(kvferry_batch_discard(initiator, batch), -1);
    CHECK(allocateBatchID(initiator, 1) != batch);
}

static void test_batches_of_another_engine_are_unknown(void)
{
    batch_id_t batch = allocateBatchID(target, 1);

    CHECK_EQUAL(freeBatchID(initiator, batch), 1);
    CHECK_EQUAL(freeBatchID(target, batch), 0);
}

static void test_pages_of_pools_move_in_one_call(void)
{
    enum { PAGES = 20, POOLS = 3, LENGTH = 64, POOL = 2 * PAGES * LENGTH };
    uint64_t local[PAGES], remote[PAGES], rows[POOLS][5];
    batch_id_t batch = 1;
    size_t limit;
    int i, pool;

    fill(near, SIZE, 5);
    for (i = 0; i < PAGES; i++) {
        local[i] = (uint64_t)(2 * i);
        remote[i] = (uint64_t)(PAGES - 1 - i);
    }
    for (pool = 0; pool < POOLS; pool++) {
        rows[pool][0] = (uint64_t)(uintptr_t)near + (uint64_t)(pool * POOL);
        rows[pool][1] = LENGTH;
        rows[pool][2] = (uint64_t)(uintptr_t)far + (uint64_t)(pool * POOL);
        rows[pool][3] = 2 * LENGTH;
        rows[pool][4] = LENGTH;
    }
    for (limit = 0; limit < 60; limit += 7) {
        memset(far, 0, POOLS * POOL);
        CHECK_EQUAL(kvferry_transfer_pages(initiator, OPCODE_WRITE, peer, local, remote, PAGES, rows[0], POOLS, limit,
                                           20000, &batch), 0);
        CHECK_EQUAL(batch, INVALID_BATCH);
        for (pool = 0; pool < POOLS; pool++) {
            for (i = 0; i < PAGES; i++) {
                CHECK(memcmp(near + pool * POOL + 2 * i * LENGTH, far + pool * POOL + (PAGES - 1 - i) * 2 * LENGTH,
                             LENGTH) == 0);
            }
        }
    }
    CHECK_EQUAL(kvferry_submit_pages(initiator, OPCODE_READ, peer, local, remote, PAGES, rows[0], POOLS, 0, &batch), 0);
    CHECK_EQUAL(kvferry_batch_bytes(initiator, batch), PAGES * POOLS * LENGTH);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 20000), 0);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
    CHECK_EQUAL(kvferry_batch_bytes(initiator, batch), 0);

    CHECK_EQUAL(kvferry_transfer_pages(initiator, OPCODE_WRITE, peer, NULL, NULL, 0, rows[0], POOLS, 0, 0, &batch), 0);
    CHECK_EQUAL(kvferry_transfer_pages(initiator, OPCODE_WRITE, peer, local, remote, PAGES, NULL, 0, 0, 0, &batch), 0);
    CHECK_EQUAL(kvferry_transfer_pages(initiator, OPCODE_WRITE, peer, NULL, remote, PAGES, rows[0], 1, 0, 0, &batch), -1);
    CHECK_EQUAL(kvferry_transfer_pages(initiator, OPCODE_WRITE, peer, local, remote, PAGES, rows[0], 1, 0, 0, NULL), -1);
    CHECK_EQUAL(kvferry_transfer_pages(initiator, 2, peer, local, remote, PAGES, rows[0], 1, 0, 0, &batch), -1);
    for (limit = 0; limit < 2; limit++) { /* all at once, and one after the other */
        CHECK_EQUAL(kvferry_submit_pages(initiator, 2, peer, local, remote, PAGES, rows[0], 1, limit, &batch), -1);
        CHECK_EQUAL(kvferry_submit_pages(initiator, OPCODE_READ, 4711, local, remote, PAGES, rows[0], 1, limit, &batch), -1);
        CHECK_EQUAL(batch, INVALID_BATCH);
    }
    rows[1][4] = 0;
    CHECK_EQUAL(kvferry_transfer_pages(initiator, OPCODE_WRITE, peer, local, remote, PAGES, rows[0], POOLS, 0, 0, &batch),
                -1);
    CHECK_EQUAL(batch, INVALID_BATCH);
}

static void test_blocks_of_regions_move_with_a_peer_that_is_named(void)
{
    enum { LENGTH = 100 };
    uint64_t regions[2][5] = {{0, 300, 0, 200, 2}, {0, LENGTH, 0, LENGTH, 1}};
    uint64_t local[3] = {0, 200, 0}, remote[3] = {100, 0, 0}, lengths[3] = {LENGTH, LENGTH, LENGTH};
    batch_id_t batch;
    char name[64];

    fill(near, SIZE, 6);
    memset(far, 0, 1000);
    regions[0][0] = (uint64_t)(uintptr_t)near;
    regions[0][2] = (uint64_t)(uintptr_t)far;
    regions[1][0] = (uint64_t)(uintptr_t)near + 500;
    regions[1][2] = (uint64_t)(uintptr_t)far + 500;
    CHECK_EQUAL(getLocalIpAndPort(target, name, sizeof name), 0);
    CHECK_EQUAL(kvferry_submit_scatter(initiator, OPCODE_WRITE, name, regions[0], 2, local, remote, lengths, 3, &batch), 0);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 20000), 0);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);
    CHECK(memcmp(near, far + 100, LENGTH) == 0);
    CHECK(memcmp(near + 200, far, LENGTH) == 0);
    CHECK(memcmp(near + 500, far + 500, LENGTH) == 0);

    CHECK_EQUAL(kvferry_submit_scatter(initiator, OPCODE_WRITE, "127.0.0.1:1", regions[0], 2, local, remote, lengths, 3,
                                       &batch), 0);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, 20000), KVFERRY_ERR_FAILED);
    CHECK_EQUAL(kvferry_batch_cancel(initiator, batch), 0);
    CHECK_EQUAL(kvferry_batch_discard(initiator, batch), 0);
    local[1]++;
    CHECK_EQUAL(kvferry_submit_scatter(initiator, OPCODE_WRITE, name, regions[0], 2, local, remote, lengths, 3, &batch), -1);
    CHECK_EQUAL(batch, INVALID_BATCH);
    CHECK_EQUAL(kvferry_submit_scatter(initiator, OPCODE_WRITE, NULL, regions[0], 2, local, remote, lengths, 3, &batch), -1);
    CHECK_EQUAL(kvferry_submit_scatter(initiator, 2, name, regions[0], 2, local, remote, lengths, 3, &batch), -1);
}

static void test_arrays_move_in_one_call(void)
{
    enum { COUNT = 100, LENGTH = 64 };
    uint64_t local[COUNT], remote[COUNT], lengths[COUNT];
    batch_id_t batch = 1;
    int i;

    fill(near, SIZE, 4);
    for (i = 0; i < COUNT; i++) {
        local[i] = (uint64_t)(uintptr_t)near + (uint64_t)(2 * i * LENGTH);
        remote[i] = (uint64_t)(uintptr_t)far + (uint64_t)((COUNT - i) * 2 * LENGTH);
        lengths[i] = LENGTH;
    }
    CHECK_EQUAL(kvferry_transfer_sync(initiator, OPCODE_WRITE, peer, local, remote, lengths, COUNT, NULL, 20000, &batch),
                0);
    CHECK_EQUAL(batch, INVALID_BATCH);
    for (i = 0; i < COUNT; i++) {
        CHECK(memcmp(near + 2 * i * LENGTH, far + (COUNT - i) * 2 * LENGTH, LENGTH) == 0);
    }
    CHECK_EQUAL(kvferry_submit(initiator, OPCODE_READ, peer, local, remote, lengths, COUNT, NULL, &batch), 0);
    CHECK_EQUAL(kvferry_batch_wait(initiator, batch, -1), 0);
    CHECK_EQUAL(freeBatchID(initiator, batch), 0);

    remote[COUNT / 2] = 8;
    CHECK_EQUAL(kvferry_transfer_sync(initiator, OPCODE_WRITE, peer, local, remote, lengths, COUNT, NULL, 20000, &batch),
                KVFERRY_ERR_FAILED);
    CHECK_EQUAL(batch, INVALID_BATCH);
    CHECK(strlen(kvferry_last_error()) > 0);
    CHECK_EQUAL(kvferry_transfer_sync(initiator, 7, peer, local, remote, lengths, COUNT, NULL, 20000, &batch), -1);
    CHECK_EQUAL(kvferry_submit(initiator, OPCODE_READ, 99, local, remote, lengths, COUNT, NULL, &batch), -1);
    CHECK_EQUAL(batch, INVALID_BATCH);
    CHECK_EQUAL(kvferry_transfer_sync(initiator, OPCODE_WRITE, peer, NULL, NULL, NULL, 0, NULL, 0, &batch), 0);
}

int main(void)
{
    initiator = make_engine();
    target = make_engine();
    CHECK_EQUAL(registerLocalMemory(target, far, SIZE, "cpu:0", 1), 0);
    peer = open_peer(initiator, target);
    CHECK(peer > 0);
    test_bytes_arrive_both_ways();
    test_own_segment_is_a_copy();
    test_task_ids_count_on_over_submits();
    test_status_is_untouched_on_error();
    test_batch_takes_no_more_than_its_capacity();
    test_absurd_counts_are_refused();
    test_bad_requests_submit_nothing();
    test_a_message_that_is_too_long_is_refused();
    test_bad_target_range_fails_its_own_task_only();
    test_freed_batch_is_gone();
    test_batches_of_another_engine_are_unknown();
    test_pages_of_pools_move_in_one_call();
    test_blocks_of_regions_move_with_a_peer_that_is_named();
    test_arrays_move_in_one_call();
    destroyTransferEngine(initiator);
    destroyTransferEngine(target);
    return 0;
}
