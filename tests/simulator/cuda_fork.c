/* In a child of fork() every call fails, none hangs, and the parent's devices still work. */
#include "cu.h"
#include "processes.h"

enum { SIZE = 4096 };

static CUdeviceptr device;
static unsigned char *pinned;
static void *context, *stream, *event;

static void check_child(void)
{
    const char *text;
    void *made;
    int attribute = 2, number;

    CHECK_FAILS(cuInit(0), NOT_INITIALIZED);
    CHECK_FAILS(cuDeviceGetCount(&number), NOT_INITIALIZED);
    CHECK_FAILS(cuDevicePrimaryCtxRetain(&made, 0), NOT_INITIALIZED);
    CHECK_FAILS(cuDevicePrimaryCtxRelease_v2(0), NOT_INITIALIZED);
    CHECK_FAILS(cuCtxSetCurrent(context), NOT_INITIALIZED);
    CHECK_FAILS(cuMemFree_v2(device), NOT_INITIALIZED);
    CHECK_FAILS(cuMemFreeHost(pinned), NOT_INITIALIZED);
    CHECK_FAILS(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream), NOT_INITIALIZED);
    CHECK_FAILS(cuStreamSynchronize(stream), NOT_INITIALIZED);
    CHECK_FAILS(cuEventSynchronize(event), NOT_INITIALIZED);
    CHECK_FAILS(cuStreamDestroy_v2(stream), NOT_INITIALIZED);
    CHECK_FAILS(cuPointerGetAttributes(1, &attribute, &made, device), NOT_INITIALIZED);
    OK(cuGetErrorName(NOT_INITIALIZED, &text));
    CHECK_EQUAL(kvferry_sim_faults(NULL), -1);
    CHECK_EQUAL(kvferry_sim_report(NULL, 0), 0);
}

/* Takes the simulator's lock again and again. */
static void *use(void *stop)
{
    OK(cuCtxSetCurrent(context));
    while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) {
        OK(cuMemFree_v2(device_memory(SIZE)));
    }
    return NULL;
}

int main(void)
{
    context = begin(0);
    OK(kvferry_sim_cost("0"));
    stream = new_stream(NON_BLOCKING);
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    check_forks(use, check_child);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuStreamSynchronize(stream));
    return 0;
}
