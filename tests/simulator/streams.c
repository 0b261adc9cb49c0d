/* Streams run copies in order and asynchronously, but for pageable memory; events show their progress. */
#include "acl.h"

enum { SIZE = 1 << 16, BLOCKS = 64, BLOCK = SIZE / BLOCKS, LONGEST = 4096 /* batch */ };

static unsigned char host[SIZE], back[SIZE];
static unsigned char *device, *other, *pinned, *pinned_back;
static void *stream, *event;

/* A chain of copies, of which each reads the target of the one before. */
static void test_stream_keeps_its_order(void)
{
    int i;

    fill(pinned, SIZE, 1);
    OK(aclrtMemcpyAsync(device, SIZE, pinned, BLOCK, H2D, stream));
    for (i = 1; i < BLOCKS; i++) {
        OK(aclrtMemcpyAsync(device + i * BLOCK, BLOCK, device + (i - 1) * BLOCK, BLOCK, D2D, stream));
    }
    OK(aclrtMemcpyAsync(pinned_back, SIZE, device, SIZE, D2H, stream));
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtSynchronizeEvent(event));
    for (i = 0; i < BLOCKS; i++) {
        CHECK(memcmp(pinned_back + i * BLOCK, pinned, BLOCK) == 0);
    }
}

/* More than a stream holds is submitted: that waits, and loses nothing. */
static void test_many_copies_are_all_made(void)
{
    int i;

    fill(pinned, SIZE, 2);
    OK(aclrtMemset(device, SIZE, 0, SIZE));
    for (i = 0; i + 13 <= SIZE; i += 13) {
        OK(aclrtMemcpyAsync(device + i, 13, pinned + i, 13, H2D, stream));
    }
    OK(aclrtMemcpyAsync(pinned_back, SIZE, device, SIZE, D2H, stream));
    OK(aclrtSynchronizeStream(stream));
    CHECK(memcmp(pinned_back, pinned, (size_t)i) == 0);
}

static void test_one_stream_waits_for_another(void)
{
    void *second = new_stream();
    int round;

    for (round = 0; round < 50; round++) {
        fill(pinned, SIZE, (uint32_t)round);
        OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
        OK(aclrtRecordEvent(event, stream));
        OK(aclrtStreamWaitEvent(second, event));
        OK(aclrtMemcpyAsync(pinned_back, SIZE, device, SIZE, D2H, second));
        OK(aclrtSynchronizeStream(second));
        CHECK(memcmp(pinned_back, pinned, SIZE) == 0);
    }
    OK(aclrtDestroyStream(second));
}

/* An event stands for the operations that were queued when it was last recorded. */
static void test_events_can_be_queried_and_recorded_again(void)
{
    void *fresh = new_event();
    int status = -1;

    OK(aclrtQueryEventStatus(fresh, &status));
    CHECK_EQUAL(status, 1);
    OK(aclrtSynchronizeEvent(fresh));
    OK(aclrtRecordEvent(fresh, stream));
    OK(aclrtSynchronizeEvent(fresh));
    OK(kvferry_sim_cost("h2d=25/60000000")); /* a minute */
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    OK(aclrtQueryEventStatus(fresh, &status));
    CHECK_EQUAL(status, 1);
    OK(aclrtRecordEvent(fresh, stream));
    OK(aclrtQueryEventStatus(fresh, &status));
    CHECK_EQUAL(status, 0);
    CHECK_FAILS(aclrtSynchronizeEventWithTimeout(fresh, 0), EVENT_TIMEOUT);
    CHECK_FAILS(aclrtSynchronizeEventWithTimeout(fresh, 20), EVENT_TIMEOUT);
    CHECK_FAILS(aclrtSynchronizeStreamWithTimeout(stream, 20), STREAM_TIMEOUT);
    OK(aclrtQueryEventStatus(fresh, &status)); /* its bytes are there by now, and its time has not come */
    CHECK_EQUAL(status, 0);
    CHECK_FAILS(aclrtSynchronizeEventWithTimeout(fresh, -2), INVALID);
    CHECK_FAILS(aclrtSynchronizeStreamWithTimeout(stream, -2), INVALID);
    CHECK_FAILS(aclrtQueryEventStatus(fresh, NULL), INVALID);
    OK(aclrtDestroyEvent(fresh));
    OK(kvferry_sim_cost("0"));
}

/* A copy with pageable memory is complete when the call returns, and runs after earlier operations of the stream. */
static void test_pageable_copies_are_synchronous(void)
{
    void *second = new_stream();

    fill(host, SIZE, 3);
    OK(aclrtMemcpyAsync(device, SIZE, host, SIZE, H2D, second));
    memset(host, 0, SIZE);
    OK(aclrtMemcpyAsync(other, SIZE, device, SIZE, D2D, second));
    OK(aclrtMemcpyAsync(back, SIZE, other, SIZE, D2H, second));
    fill(host, SIZE, 3);
    CHECK(memcmp(back, host, SIZE) == 0);
    CHECK_EQUAL(reported("pageable_copies"), 2);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE, (void *)64, SIZE, H2D, second), DMA_ERROR);
    OK(aclrtDestroyStream(second));
}

static void test_wrong_copies_are_refused(void)
{
    void *second = new_stream();

    CHECK_FAILS(aclrtMemcpyAsync(back, SIZE, host, SIZE, H2H, second), UNSUPPORTED);
    CHECK_FAILS(aclrtMemcpyAsync(pinned_back, SIZE, pinned, SIZE, DEFAULT, second), UNSUPPORTED);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE - 1, pinned, SIZE, H2D, second), INVALID);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, D2H, second), INVALID);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE, pinned + 1, SIZE, H2D, second), INVALID);
    CHECK_FAILS(aclrtMemcpyAsync(other + 1, SIZE, device, 64, D2D, second), UNALIGNED);
    CHECK_FAILS(aclrtMemcpyAsync(other, SIZE, device + 32, 64, D2D, second), UNALIGNED);
    OK(aclrtMemcpyAsync(other, SIZE, device + 64, 63, D2D, second));
    OK(aclrtSynchronizeStream(second));
    OK(aclrtDestroyStream(second));
}

static void test_stale_handles_are_recognised(void)
{
    void *old_stream = new_stream(), *old_event = new_event(), *new_ones[4];
    long long before = reported("unknown_handle");
    int i;

    OK(aclrtDestroyStream(old_stream));
    OK(aclrtDestroyEvent(old_event));
    for (i = 0; i < 4; i++) { /* in the place of the old ones */
        new_ones[i] = i % 2 ? new_event() : new_stream();
    }
    CHECK_FAILS(aclrtSynchronizeStream(old_stream), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtDestroyStream(old_stream), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, old_stream), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, NULL), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtRecordEvent(old_event, stream), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtRecordEvent(stream, event), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtSynchronizeEvent((void *)&before), NO_SUCH_HANDLE);
    CHECK_FAILS(aclrtDestroyEvent(old_event), NO_SUCH_HANDLE);
    CHECK_EQUAL(reported("unknown_handle") - before, 8);
    CHECK_FAILS(aclrtCreateStream(NULL), INVALID);
    CHECK_FAILS(aclrtCreateEvent(NULL), INVALID);
    for (i = 0; i < 4; i++) {
        OK(i % 2 ? aclrtDestroyEvent(new_ones[i]) : aclrtDestroyStream(new_ones[i]));
    }
}

static void *to[LONGEST + 1], *from[LONGEST + 1];
static size_t rooms[LONGEST + 1], sizes[LONGEST + 1], failed;

static int copy_batch(size_t count, struct direction *attributes, size_t *indexes, size_t n)
{
    return aclrtMemcpyBatchAsync(to, rooms, from, sizes, count, attributes, indexes, n, &failed, stream);
}

static void test_batches_are_copied_in_one_direction(void)
{
    struct direction out = {{0, HOST}, {0, DEVICE}, {0}}, in = {{0, DEVICE}, {0, HOST}, {0}}, mixed[2], far, within;
    size_t indexes[2] = {0, 5};
    int i;

    far = out;
    far.from.id = 1;
    within = in;
    within.from.type = DEVICE;
    fill(pinned, SIZE, 4);
    OK(aclrtMemcpy(device, SIZE, pinned, SIZE, H2D));
    for (i = 0; i < BLOCKS; i++) {
        from[i] = device + (i * 7 % BLOCKS) * BLOCK;
        to[i] = pinned_back + i * BLOCK;
        rooms[i] = BLOCK;
        sizes[i] = BLOCK - (size_t)i;
    }
    OK(copy_batch(BLOCKS, &out, indexes, 1));
    CHECK(failed == SIZE_MAX);
    OK(aclrtSynchronizeStream(stream));
    for (i = 0; i < BLOCKS; i++) {
        CHECK(memcmp(to[i], pinned + (i * 7 % BLOCKS) * BLOCK, sizes[i]) == 0);
    }
    mixed[0] = mixed[1] = out;
    OK(copy_batch(BLOCKS, mixed, indexes, 2));
    mixed[1] = in;
    CHECK_FAILS(copy_batch(BLOCKS, mixed, indexes, 2), INVALID);
    CHECK_FAILS(copy_batch(BLOCKS, &in, indexes, 1), INVALID);
    CHECK_EQUAL(failed, 0);
    CHECK_FAILS(copy_batch(BLOCKS, &within, indexes, 1), INVALID);
    CHECK(failed == SIZE_MAX); /* the attributes are wrong, not a copy */
    CHECK_FAILS(copy_batch(BLOCKS, &far, indexes, 1), INVALID);
    CHECK_FAILS(copy_batch(BLOCKS, NULL, indexes, 1), INVALID);
    CHECK_FAILS(copy_batch(BLOCKS, &out, indexes + 1, 1), INVALID);
    CHECK_FAILS(copy_batch(BLOCKS, &out, indexes, 0), INVALID);
    CHECK_FAILS(copy_batch(0, &out, indexes, 1), INVALID);
    for (i = BLOCKS; i <= LONGEST; i++) {
        from[i] = from[0];
        to[i] = pinned_back + i;
        rooms[i] = sizes[i] = 1;
    }
    OK(copy_batch(LONGEST, &out, indexes, 1));
    CHECK_FAILS(copy_batch(LONGEST + 1, &out, indexes, 1), INVALID);
    from[9] = host;
    CHECK_FAILS(copy_batch(BLOCKS, &out, indexes, 1), INVALID);
    CHECK_EQUAL(failed, 9);
    OK(aclrtSynchronizeStream(stream));
}

/* Rows of 100 bytes, 1,000 apart on the device and 300 apart on the host; between them nothing is touched. */
static void test_matrix_is_copied_row_by_row(void)
{
    enum { ROWS = 9, WIDTH = 100, FAR = 1000, NEAR = 300 };
    int i, j;

    fill(pinned, SIZE, 6);
    OK(aclrtMemcpy(device, SIZE, pinned, SIZE, H2D));
    fill(pinned_back, SIZE, 7);
    memcpy(host, pinned_back, SIZE);
    OK(aclrtMemcpy2dAsync(pinned_back, NEAR, device, FAR, WIDTH, ROWS, D2H, stream));
    OK(aclrtSynchronizeStream(stream));
    for (i = 0; i < ROWS; i++) {
        CHECK(memcmp(pinned_back + i * NEAR, pinned + i * FAR, WIDTH) == 0);
        for (j = i * NEAR + WIDTH; j < (i + 1) * NEAR; j++) {
            CHECK_EQUAL(pinned_back[j], host[j]);
        }
    }
    OK(aclrtMemcpy2dAsync(device, FAR, pinned_back, NEAR, WIDTH, ROWS, H2D, stream));
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtMemcpy(back, SIZE, device, SIZE, D2H));
    CHECK(memcmp(back, pinned, SIZE) == 0);
    CHECK_FAILS(aclrtMemcpy2dAsync(device, FAR, pinned, WIDTH - 1, WIDTH, ROWS, H2D, stream), INVALID);
    CHECK_FAILS(aclrtMemcpy2dAsync(device, FAR, pinned, NEAR, WIDTH, 0, H2D, stream), INVALID);
    CHECK_FAILS(aclrtMemcpy2dAsync(device, FAR, pinned, NEAR, 0, ROWS, H2D, stream), INVALID);
    CHECK_FAILS(aclrtMemcpy2dAsync(device, FAR, pinned, NEAR, WIDTH, 5 * 1024 * 1024 + 1, H2D, stream), INVALID);
    CHECK_FAILS(aclrtMemcpy2dAsync(device, FAR, other, NEAR, WIDTH, ROWS, D2D, stream), UNSUPPORTED);
    OK(aclrtSynchronizeStream(stream));
}

/* Destroying or freeing something that is in use is reported, and does not crash. */
static void test_release_of_what_is_in_use_is_reported(void)
{
    void *second = new_stream();
    unsigned char *memory = device_memory(SIZE), *block = pinned_memory(SIZE);

    fill(block, SIZE, 5);
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(aclrtMemcpyAsync(memory, SIZE, block, SIZE, H2D, second));
    OK(aclrtMemcpyAsync(device, SIZE, memory, SIZE, D2D, second));
    OK(aclrtFree(memory));
    OK(aclrtFreeHost(block));
    CHECK_EQUAL(reported("busy_free"), 2);
    CHECK_FAILS(aclrtMemcpy(back, SIZE, memory, SIZE, D2H), INVALID);
    kvferry_sim_release_hangs();
    OK(aclrtSynchronizeStream(second));
    OK(aclrtMemcpy(back, SIZE, device, SIZE, D2H));
    fill(host, SIZE, 5);
    CHECK(memcmp(back, host, SIZE) == 0);

    OK(kvferry_sim_cost("h2d=25/50000"));
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, second));
    OK(aclrtDestroyStream(second));
    CHECK_EQUAL(reported("busy_destroy"), 1);
    OK(kvferry_sim_cost("0"));
    OK(kvferry_sim_faults(NULL));
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    stream = new_stream();
    event = new_event();
    device = device_memory(SIZE);
    other = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    pinned_back = pinned_memory(SIZE);
    test_stream_keeps_its_order();
    test_many_copies_are_all_made();
    test_one_stream_waits_for_another();
    test_pageable_copies_are_synchronous();
    test_wrong_copies_are_refused();
    test_stale_handles_are_recognised();
    test_batches_are_copied_in_one_direction();
    test_matrix_is_copied_row_by_row();
    test_release_of_what_is_in_use_is_reported();
    test_events_can_be_queried_and_recorded_again();
    return 0; /* with a stream that is busy for a minute */
}
