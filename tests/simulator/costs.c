/* The cost model: nothing is complete before its time. How soon afterwards it is depends on the machine. */
#include "acl.h"

enum { SIZE = 1 << 20, BATCH = 11 };

static unsigned char host[SIZE];
static unsigned char *device, *pinned;
static void *stream, *second, *event;

/* Checks that at least so many milliseconds have passed since a time. */
static void check_took(double start, double milliseconds)
{
    CHECK((now() - start) * 1e3 >= milliseconds);
}

static void test_latency_and_bandwidth_add_up_in_a_stream(void)
{
    double start = now();
    int i, status;

    OK(kvferry_sim_cost("h2d=0.1/5000")); /* 5 ms, and 10.5 ms for a MiB */
    for (i = 0; i < 3; i++) {
        OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    }
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtQueryEventStatus(event, &status));
    CHECK(status == 0 || (now() - start) * 1e3 >= 46);
    OK(aclrtSynchronizeEvent(event));
    check_took(start, 46);
    OK(aclrtQueryEventStatus(event, &status));
    CHECK_EQUAL(status, 1);
}

/* The bytes are there long before the time has come; that does not end a wait. */
static void test_waiting_again_is_not_shorter(void)
{
    double start = now();

    OK(kvferry_sim_cost("h2d=25/60000"));
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    CHECK_FAILS(aclrtSynchronizeStreamWithTimeout(stream, 20), STREAM_TIMEOUT);
    OK(aclrtSynchronizeStream(stream));
    check_took(start, 60);
}

/* A stream that waits for an event continues after it. */
static void test_waiting_stream_starts_later(void)
{
    double start = now();

    OK(kvferry_sim_cost("h2d=25/30000,d2h=25/20000"));
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtStreamWaitEvent(second, event));
    OK(aclrtMemcpyAsync(pinned, SIZE, device, SIZE, D2H, second));
    OK(aclrtSynchronizeStream(second));
    check_took(start, 50);
}

static void test_batch_pays_the_latency_once(void)
{
    void *to[BATCH], *from[BATCH];
    size_t sizes[BATCH], index = 0, failed;
    struct direction in = {{0, DEVICE}, {0, HOST}, {0}};
    double start = now();
    int i;

    OK(kvferry_sim_cost("h2d=25/20000,batch=2000"));
    for (i = 0; i < BATCH; i++) {
        to[i] = device + i * 100;
        from[i] = pinned + i * 100;
        sizes[i] = 100;
    }
    OK(aclrtMemcpyBatchAsync(to, sizes, from, sizes, BATCH, &in, &index, 1, &failed, stream));
    OK(aclrtSynchronizeStream(stream));
    check_took(start, 40);
}

static void test_pageable_memory_has_a_price_of_its_own(void)
{
    double start = now();

    OK(kvferry_sim_cost("pageable=0.05/10000")); /* 10 ms, and 21 ms for a MiB */
    OK(aclrtMemcpy(device, SIZE, host, SIZE, H2D));
    check_took(start, 30.9);
    start = now();
    OK(aclrtMemcpyAsync(host, SIZE, device, SIZE, D2H, stream));
    check_took(start, 30.9);
}

/* The time between two events, in microseconds, by the cost model: waiting for both makes no difference to it. */
static int between(void *from, void *to)
{
    float milliseconds;

    OK(aclrtSynchronizeEvent(to));
    OK(aclrtEventElapsedTime(&milliseconds, from, to));
    return (int)(milliseconds * 1e3f + 0.5f);
}

/* What two copies of 100 bytes in a list take, and one list of 11 of them in a batch. */
static void test_elapsed_time_is_that_of_the_cost_model(void)
{
    void *to[BATCH], *from[BATCH], *last = new_event();
    size_t sizes[BATCH], index = 0;
    struct direction in = {{0, DEVICE}, {0, HOST}, {0}};
    float milliseconds;
    int i;

    OK(kvferry_sim_cost("h2d=0.1/40,batch=1,batch-h2d=7,row=3"));
    OK(aclrtRecordEvent(event, stream));
    for (i = 0; i < 2; i++) {
        OK(aclrtMemcpyAsync(device, SIZE, pinned, 100, H2D, stream));
        OK(aclrtSynchronizeStream(stream));
    }
    OK(aclrtRecordEvent(last, stream));
    CHECK_EQUAL(between(event, last), 2 * (40 + 1));
    for (i = 0; i < BATCH; i++) {
        to[i] = device + i * 100;
        from[i] = pinned + i * 100;
        sizes[i] = 100;
    }
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtMemcpyBatchAsyncV2(to, sizes, from, sizes, BATCH, &in, &index, 1, stream));
    OK(aclrtRecordEvent(last, stream));
    CHECK_EQUAL(between(event, last), 40 + 10 * 7 + BATCH);
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtMemcpy2dAsync(device, 300, pinned, 200, 100, BATCH, H2D, stream));
    OK(aclrtRecordEvent(last, stream));
    CHECK_EQUAL(between(event, last), 40 + 10 * 3 + BATCH);
    OK(aclrtRecordEvent(last, second));
    CHECK_FAILS(aclrtEventElapsedTime(&milliseconds, event, last), UNTIMED);
    OK(aclrtSynchronizeStream(second));
    OK(aclrtDestroyEvent(last));
    last = new_event();
    CHECK_FAILS(aclrtEventElapsedTime(&milliseconds, event, last), UNTIMED);
    OK(aclrtDestroyEvent(last));
}

/* Later costs change a profile in part. */
static void test_profile_has_costs_of_its_own(void)
{
    void *last = new_event();

    OK(kvferry_sim_cost("gpu-h200,h2d=1/30"));
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtMemcpyAsync(device, SIZE, pinned, 1000, H2D, stream));
    OK(aclrtMemcpyAsync(device, SIZE, device + 1024, 500, D2D, stream));
    OK(aclrtRecordEvent(last, stream));
    CHECK_EQUAL(between(event, last), 31 + 3);
    OK(aclrtDestroyEvent(last));
}

static void test_costs_that_make_no_sense_are_refused(void)
{
    static const char *const wrong[] = {"h2d",      "h2d=",     "h2d=25",      "h2d=25/",      "h2d=1e-5/1", "h2d=-1/1",
                                        "h2d=1/-1", "foo=25/1", "batch=",      "batch=1/2",    "h2d=1/1x", "1",
                                        "h2d=x/1",  "batch=-1", "h2d=nan/1",   "h2d=1/1e12",
                                        "gpu",      "gpu-h200=1", "batch-h2h=1", "batch-x=1",  "row=x",      "kernel=1/1",
                                        "npu-910b-guess,x"};
    double start;
    size_t i;

    OK(kvferry_sim_cost("h2d=25/20000"));
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_FAILS(kvferry_sim_cost(wrong[i]), -1);
    }
    start = now();
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    OK(aclrtSynchronizeStream(stream));
    check_took(start, 20);
}

int main(void)
{
    begin(0);
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    stream = new_stream();
    second = new_stream();
    event = new_event();
    test_latency_and_bandwidth_add_up_in_a_stream();
    test_waiting_again_is_not_shorter();
    test_waiting_stream_starts_later();
    test_batch_pays_the_latency_once();
    test_pageable_memory_has_a_price_of_its_own();
    test_elapsed_time_is_that_of_the_cost_model();
    test_profile_has_costs_of_its_own();
    test_costs_that_make_no_sense_are_refused();
    return 0;
}
