/* Many threads use two devices at once, some with a context of their own on the stack, and the bytes are right. */
#include "cu.h"

enum { THREADS = 8, ROUNDS = 40, BLOCK = 4096, BLOCKS = 8, SIZE = BLOCK * BLOCKS };

static void count(void *calls)
{
    ++*(unsigned *)calls;
}

static void *work(void *argument)
{
    unsigned number = (unsigned)(uintptr_t)argument, round, calls = 0;
    void *context = begin((int)(number % 2)), *popped, *first, *second, *event;
    CUdeviceptr device, gathered;
    unsigned char *in, *out;
    CUdeviceptr i;

    for (round = 0; round < ROUNDS; round++) {
        device = device_memory(SIZE);
        gathered = device_memory(SIZE);
        in = pinned_memory(SIZE);
        out = pinned_memory(SIZE);
        first = new_stream(number % 4 < 2 ? NON_BLOCKING : 0);
        second = new_stream(NON_BLOCKING);
        event = new_event();
        fill(in, SIZE, number * ROUNDS + round);
        OK(cuCtxPushCurrent_v2(context));
        OK(cuMemcpyHtoDAsync_v2(device, in, SIZE, first));
        OK(cuCtxPopCurrent_v2(&popped));
        CHECK(popped == context);
        for (i = 0; i < BLOCKS; i++) {
            OK(cuMemcpyDtoDAsync_v2(gathered + (BLOCKS - 1 - i) * BLOCK, device + i * BLOCK, BLOCK, first));
        }
        OK(cuEventRecord(event, first));
        OK(cuStreamWaitEvent(second, event, 0));
        OK(cuMemcpyDtoHAsync_v2(out, gathered, SIZE, second));
        OK(cuLaunchHostFunc(second, count, &calls));
        OK(cuEventRecord(event, second));
        OK(cuEventSynchronize(event));
        for (i = 0; i < BLOCKS; i++) {
            CHECK(memcmp(out + (BLOCKS - 1 - i) * BLOCK, in + i * BLOCK, BLOCK) == 0);
        }
        CHECK_EQUAL(calls, round + 1);
        if (round % 8 == 0) { /* the default stream, which all threads of the device share */
            OK(cuMemcpyDtoDAsync_v2(gathered, device, SIZE, NULL));
            OK(cuMemcpyDtoH_v2(out, gathered, SIZE));
            CHECK(memcmp(out, in, SIZE) == 0);
        }
        OK(cuStreamSynchronize(first));
        OK(cuEventDestroy_v2(event));
        OK(cuStreamDestroy_v2(first));
        OK(cuStreamDestroy_v2(second));
        OK(cuMemFree_v2(device));
        OK(cuMemFree_v2(gathered));
        OK(cuMemFreeHost(in));
        OK(cuMemFreeHost(out));
    }
    OK(cuDevicePrimaryCtxRelease_v2((int)(number % 2)));
    return NULL;
}

int main(void)
{
    static const char *const clean[] = {"device_allocations", "host_allocations", "streams", "events", "device_sets",
                                        "busy_free", "busy_destroy", "left_behind", NULL};
    void *context;

    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0)); /* or a thread's release could end the context that others use */
    OK(cuDevicePrimaryCtxRetain(&context, 1));
    OK(kvferry_sim_cost("0"));
    on_threads(THREADS, work);
    OK(kvferry_sim_seed(7, 1));
    on_threads(THREADS, work);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuDevicePrimaryCtxRelease_v2(1));
    none_reported(clean);
    return 0;
}
