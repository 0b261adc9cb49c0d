/* Many threads use two devices at once, each with memory, streams and events of its own, and the bytes are right. */
#include "acl.h"

enum { THREADS = 8, ROUNDS = 60, BLOCK = 4096, BLOCKS = 8, SIZE = BLOCK * BLOCKS };

static void *work(void *argument)
{
    unsigned number = (unsigned)(uintptr_t)argument, round;
    unsigned char *device, *gathered, *in, *out;
    void *first, *second, *event;
    int i;

    OK(aclrtSetDevice((int)(number % 2)));
    for (round = 0; round < ROUNDS; round++) {
        device = device_memory(SIZE);
        gathered = device_memory(SIZE);
        in = pinned_memory(SIZE);
        out = pinned_memory(SIZE);
        first = new_stream();
        second = new_stream();
        event = new_event();
        fill(in, SIZE, number * ROUNDS + round);
        OK(aclrtMemcpyAsync(device, SIZE, in, SIZE, H2D, first));
        for (i = 0; i < BLOCKS; i++) {
            OK(aclrtMemcpyAsync(gathered + (BLOCKS - 1 - i) * BLOCK, BLOCK, device + i * BLOCK, BLOCK, D2D, first));
        }
        OK(aclrtRecordEvent(event, first));
        OK(aclrtStreamWaitEvent(second, event));
        OK(aclrtMemcpyAsync(out, SIZE, gathered, SIZE, D2H, second));
        OK(aclrtRecordEvent(event, second));
        OK(aclrtSynchronizeEvent(event));
        for (i = 0; i < BLOCKS; i++) {
            CHECK(memcmp(out + (BLOCKS - 1 - i) * BLOCK, in + i * BLOCK, BLOCK) == 0);
        }
        OK(aclrtSynchronizeStream(first));
        OK(aclrtDestroyEvent(event));
        OK(aclrtDestroyStream(first));
        OK(aclrtDestroyStream(second));
        OK(aclrtFree(device));
        OK(aclrtFree(gathered));
        OK(aclrtFreeHost(in));
        OK(aclrtFreeHost(out));
    }
    OK(aclrtResetDevice((int)(number % 2)));
    return NULL;
}

int main(void)
{
    static const char *const clean[] = {"device_allocations", "host_allocations", "streams", "events", "device_sets",
                                        "busy_free", "busy_destroy", "use_after_free", NULL};

    OK(aclInit(NULL));
    on_threads(THREADS, work);
    OK(kvferry_sim_cost("0"));
    OK(kvferry_sim_seed(7, 1));
    on_threads(THREADS, work);
    none_reported(clean);
    return 0;
}
