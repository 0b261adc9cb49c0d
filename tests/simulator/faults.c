/* Injected faults: calls and operations that fail, operations that hang, devices that are lost. */
#include "acl.h"

enum { SIZE = 4096 };

static unsigned char *device, *pinned;
static void *stream, *event;

static int copy_in(void *to_stream)
{
    return aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, to_stream);
}

static void test_calls_fail_by_number(void)
{
    void *address;

    OK(kvferry_sim_faults("aclrtMallocHost:2=207001,aclrtMemcpyAsync:3+,aclrtSetDevice:1"));
    OK(aclrtMallocHost(&address, SIZE));
    OK(aclrtFreeHost(address));
    CHECK_FAILS(aclrtMallocHost(&address, SIZE), NO_MEMORY);
    OK(aclrtMallocHost(&address, SIZE));
    OK(aclrtFreeHost(address));
    OK(copy_in(stream));
    OK(copy_in(stream));
    CHECK_FAILS(copy_in(stream), DRIVER_ERROR);
    CHECK_FAILS(copy_in(stream), DRIVER_ERROR);
    CHECK_FAILS(aclrtSetDevice(0), DRIVER_ERROR);
    OK(kvferry_sim_faults("aclrtMemcpyAsync:1=507013"));
    CHECK_FAILS(copy_in(stream), DMA_ERROR);
    OK(copy_in(stream));
    OK(kvferry_sim_faults(NULL));
    OK(aclrtSynchronizeStream(stream));
}

/* A call that releases something does so although it fails. */
static void test_failing_releases_release(void)
{
    void *memory = device_memory(SIZE), *block = pinned_memory(SIZE), *a = new_stream(), *b = new_event();

    OK(kvferry_sim_faults("aclrtFree:1,aclrtFreeHost:1,aclrtDestroyStream:1,aclrtDestroyEvent:1,aclrtResetDevice:1"));
    CHECK_FAILS(aclrtFree(memory), DRIVER_ERROR);
    CHECK_FAILS(aclrtFreeHost(block), DRIVER_ERROR);
    CHECK_FAILS(aclrtDestroyStream(a), DRIVER_ERROR);
    CHECK_FAILS(aclrtDestroyEvent(b), DRIVER_ERROR);
    OK(aclrtSetDevice(0));
    CHECK_FAILS(aclrtResetDevice(0), DRIVER_ERROR);
    CHECK_EQUAL(reported("device_allocations"), 1);
    CHECK_EQUAL(reported("host_allocations"), 1);
    CHECK_EQUAL(reported("streams"), 1);
    CHECK_EQUAL(reported("events"), 1);
    CHECK_EQUAL(reported("device_sets"), 1);
    OK(kvferry_sim_faults(NULL));
}

static void test_unknown_faults_are_refused(void)
{
    static const char *const wrong[] = {"aclrtFoo:1",      "aclrtMalloc",   "aclrtMalloc:",      "aclrtMalloc:0",
                                        "aclrtMalloc:1=",  "exec:1=hung",   "aclrtMalloc:1=hang", "lost:0",
                                        "lost:2@1",        "lost:0@1+",     "aclrtMalloc:1 ",     "exec:-1",
                                        "aclrtMalloc:1=0", "lost:0@1=5000", ":1",                 "lost:-1@1"};
    void *memory;
    size_t i;

    OK(kvferry_sim_faults("aclrtMalloc:1"));
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_FAILS(kvferry_sim_faults(wrong[i]), -1);
    }
    CHECK_FAILS(aclrtMalloc(&memory, SIZE, 0), DRIVER_ERROR);
    OK(kvferry_sim_faults(""));
}

/* The bytes of an operation that fails are not moved. Waits for its stream fail, waits for others do not. */
static void test_operations_fail_later(void)
{
    void *failing = new_stream(), *before = new_event(), *after = new_event();
    unsigned char *first = device_memory(SIZE), *second = device_memory(SIZE), byte;
    int status;

    OK(aclrtMemset(first, SIZE, 7, SIZE));
    OK(aclrtMemset(second, SIZE, 7, SIZE));
    memset(pinned, 9, SIZE);
    OK(kvferry_sim_faults("exec:2"));
    OK(aclrtMemcpyAsync(first, SIZE, pinned, SIZE, H2D, failing));
    OK(aclrtRecordEvent(before, failing));
    OK(aclrtMemcpyAsync(second, SIZE, pinned, SIZE, H2D, failing));
    OK(aclrtRecordEvent(after, failing));
    OK(aclrtSynchronizeEvent(before));
    CHECK_FAILS(aclrtSynchronizeEvent(after), DMA_ERROR);
    CHECK_FAILS(aclrtSynchronizeStream(failing), DMA_ERROR);
    CHECK_FAILS(aclrtQueryEventStatus(after, &status), DMA_ERROR);
    OK(aclrtQueryEventStatus(before, &status));
    OK(aclrtMemcpy(&byte, 1, first, 1, D2H));
    CHECK_EQUAL(byte, 9);
    OK(aclrtMemcpy(&byte, 1, second, 1, D2H));
    CHECK_EQUAL(byte, 7);
    OK(copy_in(stream));
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtDestroyStream(failing));
    failing = new_stream();
    OK(kvferry_sim_faults("exec:1=507899"));
    OK(copy_in(failing));
    CHECK_FAILS(aclrtSynchronizeStream(failing), DRIVER_ERROR);
    OK(aclrtDestroyStream(failing));
    OK(aclrtDestroyEvent(before));
    OK(aclrtDestroyEvent(after));
    OK(aclrtFree(first));
    OK(aclrtFree(second));
    OK(kvferry_sim_faults(NULL));
}

static void *release(void *unused)
{
    struct timespec pause = {0, 50000000};

    nanosleep(&pause, NULL);
    kvferry_sim_release_hangs();
    return unused;
}

/* An operation that hangs holds its stream up until it is released, and no other. */
static void test_operations_hang(void)
{
    void *hanging = new_stream(), *hung = new_event();
    pthread_t thread;
    int status, i, result = 0;

    OK(kvferry_sim_faults("exec:1=hang"));
    OK(copy_in(hanging));
    OK(aclrtRecordEvent(hung, hanging));
    CHECK_FAILS(aclrtSynchronizeEventWithTimeout(hung, 20), EVENT_TIMEOUT);
    CHECK_FAILS(aclrtSynchronizeStreamWithTimeout(hanging, 20), STREAM_TIMEOUT);
    OK(aclrtQueryEventStatus(hung, &status));
    CHECK_EQUAL(status, 0);
    OK(copy_in(stream));
    OK(aclrtSynchronizeStream(stream));
    for (i = 0; i < 2000 && result == 0; i++) {
        result = copy_in(hanging);
    }
    CHECK_EQUAL(result, STREAM_FULL);
    CHECK(pthread_create(&thread, NULL, release, NULL) == 0);
    OK(aclrtSynchronizeEvent(hung));
    OK(aclrtSynchronizeStream(hanging));
    CHECK(pthread_join(thread, NULL) == 0);
    OK(aclrtDestroyEvent(hung));
    OK(aclrtDestroyStream(hanging));
}

static void *wait_for_event(void *waited_for)
{
    OK(aclrtSetDevice(0));
    CHECK_FAILS(aclrtSynchronizeEvent(waited_for), LOST);
    OK(aclrtResetDevice(0) == LOST ? 0 : -1);
    return NULL;
}

/* Device 1 is lost: its operations and calls fail, but its memory and streams can be released. Device 0 still works. */
static void test_device_is_lost(void)
{
    void *lost, *done, *memory, *memory_0 = device, *block;

    OK(aclrtSetDevice(1));
    lost = new_stream();
    done = new_event();
    memory = device_memory(SIZE);
    block = pinned_memory(SIZE);
    OK(kvferry_sim_faults("lost:1@2,exec:3=hang"));
    OK(aclrtMemcpyAsync(memory, SIZE, block, SIZE, H2D, lost));
    OK(aclrtSynchronizeStream(lost));
    OK(aclrtMemcpyAsync(memory, SIZE, block, SIZE, H2D, lost));
    CHECK_FAILS(aclrtSynchronizeStream(lost), LOST);
    CHECK_FAILS(aclrtMemcpyAsync(memory, SIZE, block, SIZE, H2D, lost), LOST);
    CHECK_FAILS(aclrtMemcpy(memory, SIZE, block, SIZE, H2D), LOST);
    CHECK_FAILS(aclrtRecordEvent(done, lost), LOST);
    CHECK_FAILS(aclrtSetDevice(1), LOST);
    CHECK_FAILS(aclrtDestroyEvent(done), LOST);
    CHECK_FAILS(aclrtDestroyStream(lost), LOST);
    CHECK_FAILS(aclrtFree(memory), LOST);
    CHECK_FAILS(aclrtFreeHost(block), LOST);
    CHECK_FAILS(aclrtResetDevice(1), LOST);
    OK(aclrtSetDevice(0));
    OK(aclrtMemcpy(memory_0, SIZE, pinned, SIZE, H2D));
    OK(aclrtResetDevice(0));
    OK(kvferry_sim_faults(NULL));
    OK(aclrtSetDevice(1));
    OK(aclrtResetDevice(1));
    OK(aclrtSetDevice(0));
    OK(aclrtResetDevice(0));
}

/* A thread that waits when the device is lost is woken, although the operation would hang for ever. */
static void test_loss_wakes_waiting_threads(void)
{
    void *hanging = new_stream(), *hung = new_event();
    pthread_t thread;

    OK(kvferry_sim_faults("exec:1=hang"));
    OK(copy_in(hanging));
    OK(aclrtRecordEvent(hung, hanging));
    CHECK(pthread_create(&thread, NULL, wait_for_event, hung) == 0);
    CHECK_FAILS(aclrtSynchronizeEventWithTimeout(hung, 20), EVENT_TIMEOUT);
    while (reported("aclrtSynchronizeEvent") == 0) {
        CHECK_FAILS(aclrtSynchronizeEventWithTimeout(hung, 1), EVENT_TIMEOUT);
    }
    OK(kvferry_sim_faults("lost:0@0"));
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_FAILS(aclrtDestroyStream(hanging), LOST);
    CHECK_FAILS(aclrtDestroyEvent(hung), LOST);
    OK(kvferry_sim_faults(NULL));
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    stream = new_stream();
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    test_calls_fail_by_number();
    test_failing_releases_release();
    test_unknown_faults_are_refused();
    test_operations_fail_later();
    test_operations_hang();
    OK(aclrtSetDevice(0)); /* so that it stays set */
    test_device_is_lost();
    kvferry_sim_reset_counters();
    test_loss_wakes_waiting_threads();
    CHECK_EQUAL(reported("device_allocations"), 1);
    CHECK_EQUAL(reported("host_allocations"), 1);
    CHECK_EQUAL(reported("streams"), 1);
    CHECK_EQUAL(reported("events"), 1);
    return 0;
}
