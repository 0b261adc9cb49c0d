/* Streams run copies and host functions in order; the default stream is ordered with those that block. */
#include "cu.h"

enum { SIZE = 1 << 16, BLOCKS = 64, BLOCK = SIZE / BLOCKS };

static unsigned char host[SIZE], back[SIZE];
static unsigned char *pinned, *pinned_back;
static CUdeviceptr device, other;
static void *stream, *event;

/* A chain of copies, of which each reads the target of the one before. */
static void test_stream_keeps_its_order(void)
{
    int i;

    fill(pinned, SIZE, 1);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, BLOCK, stream));
    for (i = 1; i < BLOCKS; i++) {
        OK(cuMemcpyDtoDAsync_v2(device + (CUdeviceptr)i * BLOCK, device + (CUdeviceptr)(i - 1) * BLOCK, BLOCK, stream));
    }
    OK(cuMemcpyDtoHAsync_v2(pinned_back, device, SIZE, stream));
    OK(cuEventRecord(event, stream));
    OK(cuEventSynchronize(event));
    OK(cuEventQuery(event));
    for (i = 0; i < BLOCKS; i++) {
        CHECK(memcmp(pinned_back + i * BLOCK, pinned, BLOCK) == 0);
    }
}

static void test_one_stream_waits_for_another(void)
{
    void *second = new_stream(NON_BLOCKING);
    int round;

    for (round = 0; round < 50; round++) {
        fill(pinned, SIZE, (uint32_t)round);
        OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
        OK(cuEventRecord(event, stream));
        OK(cuStreamWaitEvent(second, event, 0));
        OK(cuMemcpyDtoHAsync_v2(pinned_back, device, SIZE, second));
        OK(cuStreamSynchronize(second));
        CHECK(memcmp(pinned_back, pinned, SIZE) == 0);
    }
    OK(cuStreamDestroy_v2(second));
}

/* An event stands for the operations that were queued when it was last recorded. */
static void test_events_and_streams_can_be_queried(void)
{
    void *fresh = new_event();

    OK(cuEventQuery(fresh));
    OK(cuEventSynchronize(fresh));
    OK(cuStreamQuery(stream));
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuEventQuery(fresh));
    OK(cuEventRecord(fresh, stream));
    CHECK_EQUAL(cuEventQuery(fresh), NOT_READY);
    CHECK_EQUAL(cuStreamQuery(stream), NOT_READY);
    kvferry_sim_release_hangs();
    OK(cuCtxSynchronize());
    OK(cuEventQuery(fresh));
    OK(cuStreamQuery(stream));
    OK(cuEventDestroy_v2(fresh));
    CHECK_FAILS(cuEventQuery(fresh), NO_SUCH_HANDLE);
    CHECK_FAILS(cuEventCreate(&fresh, 8), INVALID);
    CHECK_FAILS(cuStreamCreate(&fresh, 2), INVALID);
    CHECK_FAILS(cuStreamCreate(NULL, 0), INVALID);
    CHECK_FAILS(cuStreamWaitEvent(stream, event, 1), INVALID);
    CHECK_FAILS(cuStreamDestroy_v2(NULL), NO_SUCH_HANDLE);
    CHECK_FAILS(cuStreamSynchronize(&fresh), NO_SUCH_HANDLE);
}

/* A copy with pageable memory is complete when the call returns, and runs after earlier operations of the stream. */
static void test_pageable_copies_are_synchronous(void)
{
    fill(host, SIZE, 3);
    OK(cuMemcpyHtoDAsync_v2(device, host, SIZE, stream));
    memset(host, 0, SIZE);
    OK(cuMemcpyDtoDAsync_v2(other, device, SIZE, stream));
    OK(cuMemcpyDtoHAsync_v2(back, other, SIZE, stream));
    fill(host, SIZE, 3);
    CHECK(memcmp(back, host, SIZE) == 0);
    CHECK_EQUAL(reported("pageable_copies"), 2);
}

static void test_wrong_copies_are_refused(void)
{
    CHECK_FAILS(cuMemcpyHtoDAsync_v2(device, pinned + 1, SIZE, stream), INVALID);
    CHECK_FAILS(cuMemcpyHtoDAsync_v2((CUdeviceptr)pinned_back, pinned, SIZE, stream), INVALID);
    CHECK_FAILS(cuMemcpyDtoHAsync_v2(pinned, (CUdeviceptr)host, SIZE, stream), INVALID);
    CHECK_FAILS(cuMemcpyDtoDAsync_v2(device, (CUdeviceptr)pinned, SIZE, stream), INVALID);
    CHECK_FAILS(cuMemcpyDtoDAsync_v2(device, other, SIZE + 1, stream), INVALID);
}

/* The default stream runs later operations after those of streams that block, and the other way round. */
static void test_default_stream_orders_itself_with_streams_that_block(void)
{
    void *first = new_stream(0), *second = new_stream(0), *legacy = (void *)1, *context, *found;
    unsigned seed;

    for (seed = 1; seed <= 20; seed++) {
        OK(kvferry_sim_seed(seed, 1));
        fill(pinned, SIZE, seed);
        memset(pinned_back, 0, SIZE);
        OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, first));
        OK(cuMemcpyDtoDAsync_v2(other, device, SIZE, seed % 2 ? NULL : legacy));
        OK(cuMemcpyDtoHAsync_v2(pinned_back, other, SIZE, second));
        OK(cuStreamSynchronize(second));
        CHECK(memcmp(pinned_back, pinned, SIZE) == 0);
        OK(cuMemsetD8_v2(other, 0, SIZE));
        OK(cuMemcpyDtoDAsync_v2(other, device, SIZE, first));
        OK(cuMemcpyDtoH_v2(back, other, SIZE)); /* waits for streams that block */
        CHECK(memcmp(back, pinned, SIZE) == 0);
        memset(pinned_back, 0, SIZE);
        OK(cuMemcpyDtoHAsync_v2(pinned_back, device, SIZE, first));
        OK(cuEventRecord(event, NULL)); /* stands for streams that block, too */
        OK(cuEventSynchronize(event));
        CHECK(memcmp(pinned_back, pinned, SIZE) == 0);
        memset(pinned_back, 0, SIZE);
        OK(cuMemcpyDtoHAsync_v2(pinned_back, device, SIZE, second));
        OK(cuStreamSynchronize(NULL));
        CHECK(memcmp(pinned_back, pinned, SIZE) == 0);
    }
    OK(kvferry_sim_seed(0, 0));
    OK(cuCtxGetCurrent(&context));
    OK(cuStreamGetCtx(NULL, &found));
    CHECK(found == context);
    OK(cuStreamDestroy_v2(first));
    OK(cuStreamDestroy_v2(second));
    CHECK_EQUAL(reported("streams"), 1); /* the default stream is not the program's */
}

/* Streams that do not block know nothing of the default stream. */
static void test_default_stream_does_not_wait_for_others(void)
{
    kvferry_sim_reset_counters();
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    while (reported("faults") == 0) { /* or it might be the other copy that hangs */
        CHECK_EQUAL(cuStreamQuery(stream), NOT_READY);
    }
    OK(cuMemcpyDtoHAsync_v2(pinned_back, other, SIZE, NULL));
    OK(cuStreamSynchronize(NULL));
    OK(cuMemcpyDtoH_v2(back, other, SIZE));
    CHECK_EQUAL(cuStreamQuery(stream), NOT_READY);
    kvferry_sim_release_hangs();
    OK(cuStreamSynchronize(stream));
}

struct call {
    int calls, copied, refused;
    pthread_t thread;
};

/* Called by the stream: earlier operations are complete, and the driver cannot be used. */
static void called(void *argument)
{
    struct call *call = argument;
    CUdeviceptr made;

    call->calls++;
    call->copied = memcmp(pinned_back, pinned, SIZE) == 0;
    call->refused = cuStreamQuery(stream) == NOT_PERMITTED && cuMemAlloc_v2(&made, SIZE) == NOT_PERMITTED &&
                    cuCtxSetCurrent(NULL) == NOT_PERMITTED;
    call->thread = pthread_self();
    memset(pinned_back, 5, SIZE);
}

static void test_host_functions_run_in_the_streams_order(void)
{
    struct call call = {0, 0, 0, pthread_self()};
    unsigned seed;
    int i;

    for (seed = 1; seed <= 10; seed++) {
        OK(kvferry_sim_seed(seed, 1));
        fill(pinned, SIZE, seed);
        memset(pinned_back, 0, SIZE);
        OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
        OK(cuMemcpyDtoHAsync_v2(pinned_back, device, SIZE, stream));
        OK(cuLaunchHostFunc(stream, called, &call));
        OK(cuMemcpyHtoDAsync_v2(device, pinned_back, SIZE, stream));
        OK(cuStreamSynchronize(stream));
        CHECK_EQUAL(call.calls, seed);
        CHECK(call.copied && call.refused && !pthread_equal(call.thread, pthread_self()));
        OK(cuMemcpyDtoH_v2(back, device, SIZE));
        for (i = 0; i < SIZE; i++) {
            CHECK_EQUAL(back[i], 5); /* later operations wait for it */
        }
    }
    OK(kvferry_sim_seed(0, 0));
    CHECK_FAILS(cuLaunchHostFunc(stream, NULL, NULL), INVALID);
}

static void note_time(void *argument)
{
    *(double *)argument = now();
}

/* By the cost model, too. */
static void test_host_functions_are_not_early(void)
{
    double start = now(), called_at = 0;

    OK(kvferry_sim_cost("h2d=25/30000"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuLaunchHostFunc(stream, note_time, &called_at));
    OK(cuStreamSynchronize(stream));
    CHECK((called_at - start) * 1e3 >= 30);
    OK(kvferry_sim_cost("0"));
}

static CUdeviceptr to[BLOCKS], from[BLOCKS];
static size_t sizes[BLOCKS], failed;

static int copy_batch(struct attributes *attributes, size_t *indexes, size_t n, void *in)
{
    return cuMemcpyBatchAsync(to, from, sizes, BLOCKS, attributes, indexes, n, &failed, in);
}

/* In any directions at once: by turns from the host, to it, and within the device. */
static void test_batches_are_copied_in_any_directions(void)
{
    struct attributes attributes[2] = {{IN_STREAM, {0, 0}, {0, 0}, 0}, {AT_ANY_TIME, {0, 0}, {0, 0}, 1}}, wrong;
    size_t indexes[2] = {0, 5};
    int i;

    fill(pinned, SIZE, 4);
    OK(cuMemcpyHtoD_v2(device, pinned, SIZE));
    OK(cuMemsetD8_v2(other, 0, SIZE));
    memset(pinned_back, 0, SIZE);
    kvferry_sim_reset_counters();
    for (i = 0; i < BLOCKS; i++) {
        size_t at = (size_t)i * BLOCK;

        sizes[i] = BLOCK - (size_t)i;
        from[i] = i % 3 == 0 ? (CUdeviceptr)pinned + at : device + at;
        to[i] = i % 3 == 1 ? (CUdeviceptr)pinned_back + at : other + at;
    }
    OK(copy_batch(attributes, indexes, 2, stream));
    CHECK(failed == SIZE_MAX);
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH_v2(back, other, SIZE));
    for (i = 0; i < BLOCKS; i++) {
        unsigned char *found = i % 3 == 1 ? pinned_back : back;

        CHECK(memcmp(found + i * BLOCK, pinned + i * BLOCK, sizes[i]) == 0);
    }
    CHECK_EQUAL(reported("executed"), 1);
    CHECK_EQUAL(reported("d2d"), 1);
    OK(cuMemcpyBatchAsync_v2(to, from, sizes, BLOCKS, attributes, indexes, 2, stream));
    CHECK_FAILS(cuMemcpyBatchAsync_v2(to, from, sizes, BLOCKS, attributes, indexes, 2, NULL), INVALID);
    CHECK_FAILS(copy_batch(attributes, indexes, 2, (void *)1), INVALID);
    CHECK_FAILS(copy_batch(attributes, indexes, 0, stream), INVALID);
    CHECK_FAILS(copy_batch(attributes, indexes + 1, 1, stream), INVALID);
    CHECK_FAILS(copy_batch(NULL, indexes, 1, stream), INVALID);
    wrong = attributes[0];
    wrong.order = 0;
    CHECK_FAILS(copy_batch(&wrong, indexes, 1, stream), INVALID);
    wrong.order = 4;
    CHECK_FAILS(copy_batch(&wrong, indexes, 1, stream), INVALID);
    CHECK(failed == SIZE_MAX);
    from[9] = device + SIZE - 1;
    CHECK_FAILS(copy_batch(attributes, indexes, 1, stream), INVALID);
    CHECK_EQUAL(failed, 9);
    OK(cuStreamSynchronize(stream));
}

/* After the call a source that is read during it can be written to; one that is read in the stream's order cannot. */
static void test_sources_of_a_batch_are_read_when_its_attributes_say(void)
{
    struct attributes attributes[2] = {{IN_STREAM, {0, 0}, {0, 0}, 0}, {DURING_CALL, {0, 0}, {0, 0}, 0}};
    size_t indexes[2] = {0, 1};
    int i;

    for (i = 0; i < BLOCKS; i++) {
        sizes[i] = BLOCK;
        from[i] = (CUdeviceptr)pinned + (CUdeviceptr)i * BLOCK;
        to[i] = device + (CUdeviceptr)i * BLOCK;
    }
    memset(pinned, 1, SIZE);
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(copy_batch(attributes, indexes, 2, stream));
    memset(pinned, 2, SIZE);
    kvferry_sim_release_hangs();
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH_v2(back, device, SIZE));
    CHECK(back[0] == 2 && back[BLOCK - 1] == 2 && back[BLOCK] == 1 && back[SIZE - 1] == 1);
}

static void *check_mode(void *unused)
{
    int mode = 1;

    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CHECK_EQUAL(mode, 0);
    return unused;
}

/* Nothing is captured here, but each thread has its mode. */
static void test_capture_mode_belongs_to_a_thread(void)
{
    int mode = 2;

    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CHECK_EQUAL(mode, 0);
    on_thread(check_mode, NULL);
    mode = 0;
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CHECK_EQUAL(mode, 2);
    mode = 3;
    CHECK_FAILS(cuThreadExchangeStreamCaptureMode(&mode), INVALID);
    CHECK_FAILS(cuThreadExchangeStreamCaptureMode(NULL), INVALID);
}

static void test_no_stream_is_being_captured(void)
{
    int captures = 1, i;
    void *streams[] = {NULL, stream};

    for (i = 0; i < 2; i++, captures = 1) {
        OK(cuStreamIsCapturing(streams[i], &captures));
        CHECK_EQUAL(captures, 0);
    }
    CHECK_FAILS(cuStreamIsCapturing(stream, NULL), INVALID);
    CHECK_FAILS(cuStreamIsCapturing(event, &captures), NO_SUCH_HANDLE);
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    stream = new_stream(NON_BLOCKING);
    event = new_event();
    device = device_memory(SIZE);
    other = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    pinned_back = pinned_memory(SIZE);
    test_stream_keeps_its_order();
    test_one_stream_waits_for_another();
    test_events_and_streams_can_be_queried();
    test_pageable_copies_are_synchronous();
    test_wrong_copies_are_refused();
    test_default_stream_orders_itself_with_streams_that_block();
    test_default_stream_does_not_wait_for_others();
    test_host_functions_run_in_the_streams_order();
    test_host_functions_are_not_early();
    test_batches_are_copied_in_any_directions();
    test_sources_of_a_batch_are_read_when_its_attributes_say();
    test_capture_mode_belongs_to_a_thread();
    test_no_stream_is_being_captured();
    return 0;
}
