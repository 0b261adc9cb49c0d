/* Each device's context is counted, and is current on one thread. Streams, events and memory of a context cannot be
 * used in another one, and end with it. */
#include "cu.h"

enum { SIZE = 4096 };

static unsigned char host[SIZE];

static void test_nothing_works_before_the_driver_is_initialised(void)
{
    void *context, *out = &context;
    int number, attribute = 1;
    const char *text;

    CHECK_FAILS(cuDeviceGetCount(&number), NOT_INITIALIZED);
    CHECK_FAILS(cuDevicePrimaryCtxRetain(&context, 0), NOT_INITIALIZED);
    CHECK_FAILS(cuCtxGetCurrent(&context), NOT_INITIALIZED);
    CHECK_FAILS(cuPointerGetAttributes(1, &attribute, &out, 0), NOT_INITIALIZED);
    OK(cuDriverGetVersion(&number));
    CHECK(number >= 12000);
    OK(cuGetErrorString(3, &text));
    CHECK_FAILS(cuInit(1), INVALID);
    OK(cuInit(0));
    OK(cuInit(0));
}

static void test_devices_are_listed(void)
{
    int number;
    size_t bytes;
    char name[64];

    OK(cuDeviceGetCount(&number));
    CHECK_EQUAL(number, 3);
    OK(cuDeviceGet(&number, 2));
    CHECK_EQUAL(number, 2);
    CHECK_FAILS(cuDeviceGet(&number, 3), NO_SUCH_DEVICE);
    CHECK_FAILS(cuDeviceGet(&number, -1), NO_SUCH_DEVICE);
    CHECK_FAILS(cuDeviceGetCount(NULL), INVALID);
    OK(cuDeviceGetName(name, sizeof name, 0));
    CHECK(strlen(name) > 3);
    OK(cuDeviceGetName(name, 4, 0));
    CHECK_EQUAL(strlen(name), 3);
    OK(cuDeviceTotalMem_v2(&bytes, 0));
    CHECK(bytes >= (size_t)1 << 30);
}

static void test_errors_have_names(void)
{
    static const int codes[] = {0, 1, 2, 3, 46, 100, 101, 201, 400, 600, 700, 712, 713, 719, 800, 801, 999};
    const char *text;
    size_t i;

    for (i = 0; i < sizeof codes / sizeof *codes; i++) {
        OK(cuGetErrorName(codes[i], &text));
        CHECK(strncmp(text, "CUDA_", 5) == 0);
        OK(cuGetErrorString(codes[i], &text));
        CHECK(strlen(text) > 0);
    }
    CHECK_EQUAL(cuGetErrorName(12345, &text), INVALID);
    CHECK(text == NULL);
}

/* On a thread without a context. */
static void *use_no_context(void *stream)
{
    CUdeviceptr address;
    void *made;
    int device;

    OK(cuCtxGetCurrent(&made));
    CHECK(made == NULL);
    CHECK_FAILS(cuCtxGetDevice(&device), NO_CONTEXT);
    CHECK_FAILS(cuCtxPopCurrent_v2(&made), NO_CONTEXT);
    CHECK_FAILS(cuCtxSynchronize(), NO_CONTEXT);
    CHECK_FAILS(cuMemAlloc_v2(&address, SIZE), NO_CONTEXT);
    CHECK_FAILS(cuMemAllocManaged(&address, SIZE, 1), NO_CONTEXT);
    CHECK_FAILS(cuMemHostAlloc(&made, SIZE, 0), NO_CONTEXT);
    CHECK_FAILS(cuMemHostRegister_v2(host, SIZE, 0), NO_CONTEXT);
    CHECK_FAILS(cuStreamCreate(&made, 0), NO_CONTEXT);
    CHECK_FAILS(cuEventCreate(&made, 0), NO_CONTEXT);
    CHECK_FAILS(cuStreamSynchronize(stream), NO_CONTEXT);
    CHECK_FAILS(cuStreamDestroy_v2(stream), NO_CONTEXT);
    CHECK_FAILS(cuMemcpyDtoH_v2(host, 0, SIZE), NO_CONTEXT);
    return NULL;
}

static void test_current_context_is_not_inherited(void)
{
    void *context, *found, *stream;
    int device;

    use_no_context(NULL);
    CHECK_EQUAL(reported("no_device_set"), 10);
    context = begin(1);
    OK(cuCtxGetCurrent(&found));
    CHECK(found == context);
    OK(cuCtxGetDevice(&device));
    CHECK_EQUAL(device, 1);
    stream = new_stream(NON_BLOCKING);
    OK(cuStreamGetCtx(stream, &found));
    CHECK(found == context);
    on_thread(use_no_context, stream);
    OK(cuStreamDestroy_v2(stream));
    OK(cuCtxSetCurrent(NULL));
    use_no_context(NULL);
    OK(cuDevicePrimaryCtxRelease_v2(1));
}

static void check_current(const void *wanted)
{
    void *found;

    OK(cuCtxGetCurrent(&found));
    CHECK(found == wanted);
}

static void test_contexts_are_a_stack(void)
{
    void *first, *second, *popped;

    OK(cuDevicePrimaryCtxRetain(&first, 0));
    OK(cuDevicePrimaryCtxRetain(&second, 1));
    CHECK(first != second);
    OK(cuCtxPushCurrent_v2(first));
    OK(cuCtxPushCurrent_v2(second));
    check_current(second);
    OK(cuCtxSetCurrent(first)); /* in the place of the second */
    check_current(first);
    OK(cuCtxPopCurrent_v2(&popped));
    CHECK(popped == first);
    check_current(first);
    OK(cuCtxPopCurrent_v2(NULL));
    check_current(NULL);
    OK(cuCtxSetCurrent(second));
    OK(cuCtxSetCurrent(NULL));
    check_current(NULL);
    CHECK_FAILS(cuCtxPopCurrent_v2(&popped), NO_CONTEXT);
    CHECK_FAILS(cuCtxPushCurrent_v2(NULL), NO_CONTEXT);
    CHECK_FAILS(cuCtxSetCurrent(&popped), NO_CONTEXT);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuDevicePrimaryCtxRelease_v2(1));
    CHECK_FAILS(cuCtxSetCurrent(first), NO_CONTEXT);
}

static int is_active(int device)
{
    unsigned flags = 1;
    int active = -1;

    OK(cuDevicePrimaryCtxGetState(device, &flags, &active));
    CHECK_EQUAL(flags, 0);
    return active;
}

/* A context is there from the first time that it is retained until it is released as often; asking makes none. */
static void test_contexts_are_counted(void)
{
    void *context, *again;

    kvferry_sim_reset_counters();
    CHECK_EQUAL(is_active(2), 0);
    OK(cuDevicePrimaryCtxRetain(&context, 2));
    OK(cuDevicePrimaryCtxRetain(&again, 2));
    CHECK(context == again);
    CHECK_EQUAL(is_active(2), 1);
    CHECK_EQUAL(reported("device_sets"), 2);
    OK(cuDevicePrimaryCtxRelease_v2(2));
    CHECK_EQUAL(is_active(2), 1);
    OK(cuDevicePrimaryCtxRelease_v2(2));
    CHECK_EQUAL(is_active(2), 0);
    CHECK_EQUAL(reported("sets"), 0); /* of device 0, the first in the report */
    CHECK_FAILS(cuDevicePrimaryCtxRelease_v2(2), NO_CONTEXT);
    CHECK_EQUAL(reported("reset_without_set"), 1);
    CHECK_FAILS(cuDevicePrimaryCtxRelease_v2(3), NO_SUCH_DEVICE);
    CHECK_FAILS(cuDevicePrimaryCtxRetain(&context, 3), NO_SUCH_DEVICE);
    CHECK_FAILS(cuDevicePrimaryCtxRetain(NULL, 0), INVALID);
}

/* The last release destroys all that is left in a context, also a queue that would never end. */
static void test_last_release_destroys_all_that_is_left(void)
{
    void *stream, *pinned;
    CUdeviceptr address;

    kvferry_sim_reset_counters();
    begin(0);
    stream = new_stream(0);
    new_event();
    address = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    OK(cuMemHostRegister_v2(host, SIZE, 0));
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(cuMemcpyHtoDAsync_v2(address, pinned, SIZE, stream));
    OK(cuMemcpyHtoDAsync_v2(address, pinned, SIZE, NULL));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(kvferry_sim_faults(NULL));
    CHECK_EQUAL(reported("left_behind"), 5);
    CHECK_EQUAL(reported("device_allocations"), 0);
    CHECK_EQUAL(reported("host_allocations"), 0);
    CHECK_EQUAL(reported("streams"), 0);
    CHECK_EQUAL(reported("events"), 0);
    check_current(NULL);
    begin(0);
    CHECK_FAILS(cuStreamSynchronize(stream), NO_SUCH_HANDLE);
    CHECK_FAILS(cuMemFree_v2(address), INVALID);
    OK(cuMemcpyHtoD_v2(device_memory(SIZE), host, SIZE));
    OK(cuCtxSetCurrent(NULL));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    CHECK_EQUAL(reported("left_behind"), 6);
}

struct objects {
    void *context;
    CUdeviceptr memory;
    void *stream, *event;
};

/* In the context of device 1: all objects are of device 0. */
static void *use_objects_of_device_0(void *argument)
{
    struct objects *o = argument;
    CUdeviceptr memory;
    void *stream, *event, *found;

    OK(cuStreamGetCtx(o->stream, &found)); /* needs no context */
    CHECK(found == o->context);
    CHECK_FAILS(cuStreamGetCtx(NULL, &found), NO_CONTEXT);
    begin(1);
    stream = new_stream(0);
    event = new_event();
    memory = device_memory(SIZE);
    OK(cuStreamGetCtx(o->stream, &found));
    CHECK(found == o->context);
    CHECK_FAILS(cuStreamGetCtx(o->event, &found), NO_SUCH_HANDLE);
    CHECK_FAILS(cuStreamSynchronize(o->stream), NO_SUCH_HANDLE);
    CHECK_FAILS(cuStreamDestroy_v2(o->stream), NO_SUCH_HANDLE);
    CHECK_FAILS(cuEventSynchronize(o->event), NO_SUCH_HANDLE);
    CHECK_FAILS(cuEventQuery(o->event), NO_SUCH_HANDLE);
    CHECK_FAILS(cuEventDestroy_v2(o->event), NO_SUCH_HANDLE);
    CHECK_FAILS(cuEventRecord(event, o->stream), NO_SUCH_HANDLE);
    CHECK_FAILS(cuStreamWaitEvent(stream, o->event, 0), NO_SUCH_HANDLE);
    CHECK_FAILS(cuMemFree_v2(o->memory), INVALID);
    CHECK_FAILS(cuMemcpyDtoH_v2(host, o->memory, SIZE), INVALID);
    CHECK_FAILS(cuMemcpyDtoDAsync_v2(memory, o->memory, SIZE, stream), INVALID);
    CHECK_FAILS(cuMemsetD8_v2(o->memory, 0, SIZE), INVALID);
    OK(cuMemFree_v2(memory));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
    OK(cuDevicePrimaryCtxRelease_v2(1));
    return NULL;
}

static void test_objects_belong_to_their_context(void)
{
    struct objects o;

    kvferry_sim_reset_counters();
    o.context = begin(0);
    o.memory = device_memory(SIZE);
    o.stream = new_stream(NON_BLOCKING);
    o.event = new_event();
    on_thread(use_objects_of_device_0, &o);
    CHECK_EQUAL(reported("other_device"), 11);
    OK(cuMemFree_v2(o.memory));
    OK(cuEventDestroy_v2(o.event));
    OK(cuStreamDestroy_v2(o.stream));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    CHECK_EQUAL(reported("left_behind"), 0);
}

int main(void)
{
    setenv("KVFERRY_SIM_DEVICES", "3", 1);
    test_nothing_works_before_the_driver_is_initialised();
    test_devices_are_listed();
    test_errors_have_names();
    test_current_context_is_not_inherited();
    test_contexts_are_a_stack();
    test_contexts_are_counted();
    test_last_release_destroys_all_that_is_left();
    test_objects_belong_to_their_context();
    return 0;
}
