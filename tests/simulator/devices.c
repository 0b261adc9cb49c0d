/* The current device belongs to a thread. Streams, events and memory of a device cannot be used with another one. */
#include "acl.h"

enum { SIZE = 4096 };

static unsigned char host[SIZE];

static void test_nothing_works_before_the_runtime_is_initialised(void)
{
    void *address;
    uint32_t count;

    CHECK_FAILS(aclrtSetDevice(0), NOT_INITIALIZED);
    CHECK_FAILS(aclrtGetDeviceCount(&count), NOT_INITIALIZED);
    CHECK_FAILS(aclrtMalloc(&address, SIZE, 0), NOT_INITIALIZED);
    CHECK_FAILS(aclFinalize(), NOT_INITIALIZED);
    OK(aclInit(NULL));
    CHECK_FAILS(aclInit(NULL), INITIALIZED_ALREADY);
    OK(aclrtGetDeviceCount(&count));
    CHECK_EQUAL(count, 3);
    CHECK_FAILS(aclrtGetDeviceCount(NULL), INVALID);
}

/* As kvferry_sim_message does, which the other tests check. */
static void test_runtime_has_the_text_of_an_error(void)
{
    const char *why;

    CHECK_EQUAL(aclrtSetDevice(3), NO_SUCH_DEVICE);
    why = aclGetRecentErrMsg();
    CHECK(why != NULL && strstr(why, "there is no device 3") != NULL);
    CHECK(aclGetRecentErrMsg() == NULL);
}

/* On a thread with no device set. */
static void *use_no_device(void *stream)
{
    int32_t device;
    void *made;

    CHECK_FAILS(aclrtGetDevice(&device), NO_DEVICE_SET);
    CHECK_FAILS(aclrtMalloc(&made, SIZE, 0), NO_DEVICE_SET);
    CHECK_FAILS(aclrtMallocHost(&made, SIZE), NO_DEVICE_SET);
    CHECK_FAILS(aclrtFree(host), NO_DEVICE_SET);
    CHECK_FAILS(aclrtFreeHost(host), NO_DEVICE_SET);
    CHECK_FAILS(aclrtCreateStream(&made), NO_DEVICE_SET);
    CHECK_FAILS(aclrtCreateEvent(&made), NO_DEVICE_SET);
    CHECK_FAILS(aclrtSynchronizeStream(stream), NO_DEVICE_SET);
    CHECK_FAILS(aclrtDestroyStream(stream), NO_DEVICE_SET);
    CHECK_FAILS(aclrtMemcpy(host, SIZE, host, SIZE, H2H), NO_DEVICE_SET);
    return NULL;
}

static void test_current_device_is_not_inherited(void)
{
    void *stream;
    int32_t device;

    use_no_device(NULL);
    OK(aclrtSetDevice(0));
    OK(aclrtGetDevice(&device));
    CHECK_EQUAL(device, 0);
    CHECK_FAILS(aclrtGetDevice(NULL), INVALID);
    stream = new_stream();
    on_thread(use_no_device, stream);
    OK(aclrtDestroyStream(stream));
    CHECK_EQUAL(reported("no_device_set"), 18);
    OK(aclrtResetDevice(0));
}

struct objects {
    void *memory, *stream, *event;
};

/* On a thread with device 1 set: all objects are of device 0. */
static void *use_objects_of_device_0(void *argument)
{
    struct objects *o = argument;
    void *stream, *event, *memory;
    int status;

    OK(aclrtSetDevice(1));
    stream = new_stream();
    event = new_event();
    memory = device_memory(SIZE);
    CHECK_FAILS(aclrtSynchronizeStream(o->stream), OTHER_DEVICE);
    CHECK_FAILS(aclrtDestroyStream(o->stream), OTHER_DEVICE);
    CHECK_FAILS(aclrtSynchronizeEvent(o->event), OTHER_DEVICE);
    CHECK_FAILS(aclrtQueryEventStatus(o->event, &status), OTHER_DEVICE);
    CHECK_FAILS(aclrtDestroyEvent(o->event), OTHER_DEVICE);
    CHECK_FAILS(aclrtRecordEvent(event, o->stream), OTHER_DEVICE);
    CHECK_FAILS(aclrtRecordEvent(o->event, stream), OTHER_DEVICE);
    CHECK_FAILS(aclrtStreamWaitEvent(stream, o->event), OTHER_DEVICE);
    CHECK_FAILS(aclrtFree(o->memory), OTHER_DEVICE);
    CHECK_FAILS(aclrtMemcpy(host, SIZE, o->memory, SIZE, D2H), OTHER_DEVICE);
    CHECK_FAILS(aclrtMemset(o->memory, SIZE, 0, SIZE), OTHER_DEVICE);
    CHECK_FAILS(aclrtMemcpyAsync(host, SIZE, o->memory, SIZE, D2H, stream), OTHER_DEVICE);
    CHECK_FAILS(aclrtMemcpyAsync(memory, SIZE, o->memory, SIZE, D2D, stream), OTHER_DEVICE);
    CHECK_FAILS(aclrtMemcpyAsync(o->memory, SIZE, memory, SIZE, D2D, stream), OTHER_DEVICE);
    OK(aclrtDeviceEnablePeerAccess(0, 0));
    OK(aclrtDeviceEnablePeerAccess(0, 0));
    OK(aclrtMemcpyAsync(memory, SIZE, o->memory, SIZE, D2D, stream));
    OK(aclrtMemcpyAsync(o->memory, SIZE, memory, SIZE, D2D, stream));
    CHECK_FAILS(aclrtMemcpyAsync(host, SIZE, o->memory, SIZE, D2H, stream), OTHER_DEVICE);
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtFree(memory));
    OK(aclrtDestroyEvent(event));
    OK(aclrtDestroyStream(stream));
    OK(aclrtResetDevice(1));
    return NULL;
}

static void test_objects_belong_to_their_device(void)
{
    struct objects o;
    int32_t can;

    OK(aclrtSetDevice(0));
    o.memory = device_memory(SIZE);
    o.stream = new_stream();
    o.event = new_event();
    OK(aclrtDeviceCanAccessPeer(&can, 0, 1));
    CHECK_EQUAL(can, 1);
    OK(aclrtDeviceCanAccessPeer(&can, 0, 0));
    CHECK_EQUAL(can, 0);
    CHECK_FAILS(aclrtDeviceCanAccessPeer(&can, 0, 3), NO_SUCH_DEVICE);
    OK(kvferry_sim_peers(0));
    OK(aclrtDeviceCanAccessPeer(&can, 0, 1));
    CHECK_EQUAL(can, 0);
    CHECK_FAILS(aclrtDeviceEnablePeerAccess(1, 0), UNSUPPORTED);
    OK(kvferry_sim_peers(1));
    CHECK_FAILS(aclrtDeviceEnablePeerAccess(3, 0), NO_SUCH_DEVICE);
    CHECK_FAILS(aclrtDeviceEnablePeerAccess(0, 0), INVALID);
    CHECK_FAILS(aclrtDeviceEnablePeerAccess(1, 1), INVALID);
    on_thread(use_objects_of_device_0, &o);
    OK(aclrtFree(o.memory));
    OK(aclrtDestroyEvent(o.event));
    OK(aclrtDestroyStream(o.stream));
    OK(aclrtResetDevice(0));
}

static void *set_and_reset(void *unused)
{
    OK(aclrtSetDevice(2));
    OK(aclrtResetDevice(2));
    return unused;
}

/* A device is released when it was reset as often as it was set. */
static void test_resets_pair_with_sets(void)
{
    int32_t device;

    CHECK_FAILS(aclrtSetDevice(3), NO_SUCH_DEVICE);
    CHECK_FAILS(aclrtSetDevice(-1), NO_SUCH_DEVICE);
    CHECK_FAILS(aclrtResetDevice(3), NO_SUCH_DEVICE);
    CHECK_FAILS(aclrtResetDevice(2), INVALID);
    CHECK_EQUAL(reported("reset_without_set"), 1);
    OK(aclrtSetDevice(2));
    on_thread(set_and_reset, NULL);
    OK(aclrtGetDevice(&device));
    CHECK_EQUAL(device, 2);
    CHECK_EQUAL(reported("device_sets"), 1);
    OK(aclrtResetDevice(2));
    CHECK_EQUAL(reported("device_sets"), 0);
    CHECK_FAILS(aclrtGetDevice(&device), NO_DEVICE_SET);
}

static void test_finalizing_ends_all_use(void)
{
    OK(aclFinalize());
    CHECK_FAILS(aclrtSetDevice(0), NOT_INITIALIZED);
}

int main(void)
{
    setenv("KVFERRY_SIM_DEVICES", "3", 1);
    test_nothing_works_before_the_runtime_is_initialised();
    test_runtime_has_the_text_of_an_error();
    test_current_device_is_not_inherited();
    test_objects_belong_to_their_device();
    test_resets_pair_with_sets();
    test_finalizing_ends_all_use();
    return 0;
}
