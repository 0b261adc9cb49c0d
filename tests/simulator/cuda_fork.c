/* In a child of fork() every call fails, none hangs, and the parent's devices are as they were. */
#include "cu.h"

#include <sys/wait.h>
#include <unistd.h>

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

/* Holds the simulator's lock again and again, so that some fork() happens while it is held. */
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
    pthread_t thread;
    int stop = 0, i, status;

    context = begin(0);
    OK(kvferry_sim_cost("0"));
    stream = new_stream(NON_BLOCKING);
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    CHECK(pthread_create(&thread, NULL, use, &stop) == 0);
    for (i = 0; i < 50; i++) {
        pid_t child = fork();

        CHECK(child >= 0);
        if (child == 0) {
            check_child();
            exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    CHECK(pthread_join(thread, NULL) == 0);
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuStreamSynchronize(stream));
    return 0;
}
