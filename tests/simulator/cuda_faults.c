/* Injected faults: an operation that fails breaks its context, where only calls that release something still work. */
#include "cu.h"

enum { SIZE = 4096 };

static CUdeviceptr device;
static unsigned char *pinned;
static void *stream, *event;

static void test_calls_fail_by_number(void)
{
    void *address;

    OK(kvferry_sim_faults("cuMemHostAlloc:2=2,cuMemcpyHtoDAsync_v2:1"));
    OK(cuMemHostAlloc(&address, SIZE, 0));
    OK(cuMemFreeHost(address));
    CHECK_FAILS(cuMemHostAlloc(&address, SIZE, 0), NO_MEMORY);
    CHECK_FAILS(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream), UNKNOWN);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuStreamSynchronize(stream));
    CHECK_FAILS(kvferry_sim_faults("aclrtMalloc:1"), -1); /* only the variable may name it */
    CHECK_FAILS(kvferry_sim_faults("cuFoo:1"), -1);
    OK(kvferry_sim_faults(NULL));
}

static int calls;

static void count(void *unused)
{
    (void)unused;
    calls++;
}

/* Releases all that was made in the context, each with that code. */
static void release_all(int code)
{
    CHECK_FAILS(cuMemFree_v2(device), code);
    CHECK_FAILS(cuMemFreeHost(pinned), code);
    CHECK_FAILS(cuEventDestroy_v2(event), code);
    CHECK_FAILS(cuStreamDestroy_v2(stream), code);
    CHECK_EQUAL(reported("device_allocations"), 0);
    CHECK_EQUAL(reported("host_allocations"), 0);
    CHECK_EQUAL(reported("streams"), 0);
    CHECK_EQUAL(reported("events"), 0);
}

static void make(int number)
{
    begin(number);
    stream = new_stream(NON_BLOCKING);
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
}

/* The bytes of an operation that fails are not moved, nor those of later ones in any stream. */
static void test_operation_that_fails_breaks_its_context(void)
{
    void *other = new_stream(NON_BLOCKING), *before = new_event();
    unsigned char byte;

    memset(pinned, 9, SIZE);
    calls = 0;
    OK(kvferry_sim_faults("exec:2"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, 1, stream));
    OK(cuEventRecord(before, stream));
    OK(cuLaunchHostFunc(stream, count, NULL));
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(calls, 1);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    CHECK_FAILS(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuEventSynchronize(before), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuEventQuery(before), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuStreamQuery(other), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, other), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuLaunchHostFunc(other, count, NULL), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuMemcpyDtoH_v2(&byte, device, 1), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuEventDestroy_v2(before), ILLEGAL_ADDRESS);
    CHECK_FAILS(cuStreamDestroy_v2(other), ILLEGAL_ADDRESS);
    release_all(ILLEGAL_ADDRESS);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    make(0); /* a new context is not broken */
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuStreamSynchronize(stream));
    OK(kvferry_sim_faults(NULL));
}

/* A host function that waits for its turn is forgotten. */
static void test_host_functions_are_not_called_after_a_failure(void)
{
    calls = 0;
    OK(kvferry_sim_faults("exec:1=hang,exec:2=719"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuLaunchHostFunc(stream, count, NULL));
    kvferry_sim_release_hangs();
    CHECK_FAILS(cuStreamSynchronize(stream), LAUNCH_FAILED);
    release_all(LAUNCH_FAILED); /* waits for the stream to end */
    CHECK_EQUAL(calls, 0);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(kvferry_sim_faults(NULL));
    make(0);
}

static void *wait_for_event(void *waited_for)
{
    begin(0);
    CHECK_FAILS(cuEventSynchronize(waited_for), ILLEGAL_ADDRESS);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    return NULL;
}

/* A thread that waits in the same context is woken, although the operation would hang for ever. */
static void test_failure_wakes_waiting_threads(void)
{
    void *failing = new_stream(NON_BLOCKING);
    pthread_t thread;

    kvferry_sim_reset_counters();
    OK(kvferry_sim_faults("exec:1=hang,exec:2"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuEventRecord(event, stream));
    CHECK(pthread_create(&thread, NULL, wait_for_event, event) == 0);
    while (reported("cuEventSynchronize") == 0 || reported("faults") == 0) {
        CHECK_EQUAL(cuEventQuery(event), NOT_READY);
    }
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, failing));
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_FAILS(cuStreamDestroy_v2(failing), ILLEGAL_ADDRESS);
    release_all(ILLEGAL_ADDRESS);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(kvferry_sim_faults(NULL));
    CHECK_EQUAL(reported("busy_free"), 0); /* as nothing can be waited for */
    CHECK_EQUAL(reported("busy_destroy"), 0);
    make(0);
}

/* The contexts of other devices are not broken. */
static void test_failure_stays_on_its_device(void)
{
    OK(kvferry_sim_faults("exec:1"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    CHECK_FAILS(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    release_all(ILLEGAL_ADDRESS);
    make(1);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuDevicePrimaryCtxRelease_v2(0));
}

static void test_device_is_lost(void)
{
    void *context;

    OK(kvferry_sim_faults("lost:1@1"));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    CHECK_FAILS(cuStreamSynchronize(stream), UNAVAILABLE);
    CHECK_FAILS(cuMemcpyHtoD_v2(device, pinned, SIZE), UNAVAILABLE);
    CHECK_FAILS(cuDevicePrimaryCtxRetain(&context, 1), UNAVAILABLE);
    release_all(UNAVAILABLE);
    CHECK_FAILS(cuDevicePrimaryCtxRelease_v2(1), UNAVAILABLE);
    CHECK_EQUAL(reported("device_sets"), 0);
    OK(kvferry_sim_faults(NULL));
}

int main(void)
{
    /* The variable may have faults of AscendCL, which this library skips. */
    setenv("KVFERRY_SIM_FAULTS", "aclrtMalloc:1,cuMemAlloc_v2:1=2", 1);
    begin(0);
    OK(kvferry_sim_cost("0"));
    CHECK_FAILS(cuMemAlloc_v2(&device, SIZE), NO_MEMORY);
    OK(kvferry_sim_faults(NULL));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    make(0);
    test_calls_fail_by_number();
    test_operation_that_fails_breaks_its_context();
    test_host_functions_are_not_called_after_a_failure();
    test_failure_wakes_waiting_threads();
    test_failure_stays_on_its_device();
    test_device_is_lost();
    CHECK_EQUAL(reported("left_behind"), 0);
    return 0;
}
