/* In a child of fork() every call fails, none hangs, and the parent's devices still work. */
#include "acl.h"
#include "processes.h"

enum { SIZE = 4096 };

static unsigned char *device, *pinned;
static void *stream, *event;

static void check_child(void)
{
    struct attributes attributes;
    int32_t number;
    void *made;

    CHECK_FAILS(aclInit(NULL), NO_DEVICE_SET);
    CHECK_FAILS(aclrtSetDevice(0), NO_DEVICE_SET);
    CHECK_FAILS(aclrtGetDevice(&number), NO_DEVICE_SET);
    CHECK_FAILS(aclrtMalloc(&made, SIZE, 0), NO_DEVICE_SET);
    CHECK_FAILS(aclrtFree(device), NO_DEVICE_SET);
    CHECK_FAILS(aclrtFreeHost(pinned), NO_DEVICE_SET);
    CHECK_FAILS(aclrtMemcpy(device, SIZE, pinned, SIZE, H2D), NO_DEVICE_SET);
    CHECK_FAILS(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream), NO_DEVICE_SET);
    CHECK_FAILS(aclrtSynchronizeStream(stream), NO_DEVICE_SET);
    CHECK_FAILS(aclrtSynchronizeEvent(event), NO_DEVICE_SET);
    CHECK_FAILS(aclrtDestroyStream(stream), NO_DEVICE_SET);
    CHECK_FAILS(aclrtDestroyEvent(event), NO_DEVICE_SET);
    CHECK_FAILS(aclrtPointerGetAttributes(device, &attributes), NO_DEVICE_SET);
    CHECK_EQUAL(kvferry_sim_faults(NULL), -1);
    CHECK_EQUAL(kvferry_sim_cost(NULL), -1);
    CHECK_EQUAL(kvferry_sim_seed(1, 1), -1);
    CHECK_EQUAL(kvferry_sim_report(NULL, 0), 0);
    kvferry_sim_reset_counters();
    kvferry_sim_release_hangs();
}

/* Takes the simulator's lock again and again. */
static void *use(void *stop)
{
    OK(aclrtSetDevice(0));
    while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) {
        OK(aclrtFree(device_memory(SIZE)));
    }
    OK(aclrtResetDevice(0));
    return NULL;
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    stream = new_stream();
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    check_forks(use, check_child);
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    OK(aclrtSynchronizeStream(stream));
    return 0;
}
