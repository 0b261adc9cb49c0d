/* Copies between two devices: with access directly, and without it by way of the host. */
#include "cu.h"

enum { SIZE = 1 << 16 };

static void *contexts[2];
static CUdeviceptr memory[2];

static void make(void)
{
    int device;

    for (device = 1; device >= 0; device--) {
        contexts[device] = begin(device);
        memory[device] = device_memory(SIZE);
        OK(cuMemsetD8_v2(memory[device], (unsigned char)(device + 1), SIZE));
    }
    kvferry_sim_reset_counters();
}

static void release(void)
{
    int device;

    for (device = 0; device < 2; device++) {
        OK(cuCtxSetCurrent(contexts[device]));
        OK(cuMemFree_v2(memory[device]));
        OK(cuDevicePrimaryCtxRelease_v2(device));
    }
}

static void check_byte(int device, unsigned char want)
{
    unsigned char byte;

    OK(cuMemcpyDtoH_v2(&byte, memory[device] + SIZE - 1, 1));
    CHECK_EQUAL(byte, want);
}

static void test_devices_say_which_others_they_can_access(void)
{
    int can;

    make();
    OK(cuDeviceCanAccessPeer(&can, 0, 1));
    CHECK_EQUAL(can, 1);
    OK(cuDeviceCanAccessPeer(&can, 1, 1));
    CHECK_EQUAL(can, 0);
    CHECK_FAILS(cuDeviceCanAccessPeer(&can, 0, 5), NO_SUCH_DEVICE);
    CHECK_FAILS(cuDeviceCanAccessPeer(NULL, 0, 1), INVALID);
    OK(kvferry_sim_peers(0));
    OK(cuDeviceCanAccessPeer(&can, 0, 1));
    CHECK_EQUAL(can, 0);
    CHECK_FAILS(cuCtxEnablePeerAccess(contexts[1], 0), NO_PEER);
    OK(kvferry_sim_peers(1));
    CHECK_FAILS(cuCtxEnablePeerAccess(contexts[1], 1), INVALID);
    CHECK_FAILS(cuCtxEnablePeerAccess(contexts[0], 0), INVALID);
    CHECK_FAILS(cuCtxEnablePeerAccess(NULL, 0), NO_CONTEXT);
    OK(cuCtxEnablePeerAccess(contexts[1], 0));
    CHECK_FAILS(cuCtxEnablePeerAccess(contexts[1], 0), PEER_ENABLED);
    release();
}

/* Whatever the access, a copy that names both contexts is made. */
static void test_copies_name_both_contexts(void)
{
    void *stream;

    make();
    stream = new_stream(NON_BLOCKING);
    CHECK_FAILS(cuMemcpyPeerAsync(memory[0], contexts[1], memory[1], contexts[1], SIZE, stream), INVALID);
    CHECK_FAILS(cuMemcpyPeerAsync(memory[0], contexts[0], memory[1], contexts[0], SIZE, stream), INVALID);
    CHECK_FAILS(cuMemcpyPeerAsync(memory[0], contexts[0], memory[1], NULL, SIZE, stream), NO_CONTEXT);
    CHECK_EQUAL(reported("other_device"), 2);
    kvferry_sim_reset_counters();
    OK(cuMemcpyPeerAsync(memory[0], contexts[0], memory[1], contexts[1], SIZE, stream));
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(reported("d2h"), 1);
    CHECK_EQUAL(reported("h2d"), 1);
    CHECK_EQUAL(reported("d2d"), 0);
    check_byte(0, 2);
    OK(cuMemsetD8_v2(memory[0], 7, SIZE));
    OK(cuCtxEnablePeerAccess(contexts[1], 0));
    kvferry_sim_reset_counters();
    OK(cuMemcpyPeerAsync(memory[1], contexts[1], memory[0], contexts[0], SIZE, stream));
    OK(cuMemcpyDtoDAsync_v2(memory[0], memory[1], SIZE, stream));
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(reported("d2d"), 2);
    CHECK_EQUAL(reported("d2h"), 0);
    check_byte(0, 7);
    OK(cuStreamDestroy_v2(stream));
    release();
}

/* Access ends with the context that it is to, or of. */
static void test_access_ends_with_a_context(void)
{
    int ends;

    for (ends = 0; ends < 2; ends++) {
        make();
        OK(cuCtxEnablePeerAccess(contexts[1], 0));
        OK(cuCtxSetCurrent(contexts[ends]));
        OK(cuMemFree_v2(memory[ends]));
        OK(cuDevicePrimaryCtxRelease_v2(ends));
        contexts[ends] = begin(ends);
        memory[ends] = device_memory(SIZE);
        OK(cuCtxSetCurrent(contexts[0]));
        OK(cuCtxEnablePeerAccess(contexts[1], 0));
        release();
    }
}

static void test_copies_of_a_peer_that_is_lost_fail(void)
{
    void *stream;

    make();
    OK(cuCtxEnablePeerAccess(contexts[1], 0));
    stream = new_stream(NON_BLOCKING);
    OK(kvferry_sim_faults("lost:1@0"));
    CHECK_FAILS(cuMemcpyPeerAsync(memory[0], contexts[0], memory[1], contexts[1], SIZE, stream), UNAVAILABLE);
    OK(kvferry_sim_faults("exec:1=hang"));
    OK(cuMemcpyPeerAsync(memory[0], contexts[0], memory[1], contexts[1], SIZE, stream));
    OK(kvferry_sim_faults("lost:1@0")); /* the first copy hangs, or does not when it begins later: it fails all the same */
    kvferry_sim_release_hangs();
    CHECK_FAILS(cuStreamSynchronize(stream), UNAVAILABLE);
    OK(kvferry_sim_faults(""));
    OK(cuStreamDestroy_v2(stream));
    release();
}

int main(void)
{
    setenv("KVFERRY_SIM_DEVICES", "3", 1);
    test_devices_say_which_others_they_can_access();
    test_copies_name_both_contexts();
    test_access_ends_with_a_context();
    test_copies_of_a_peer_that_is_lost_fail();
    return 0;
}
