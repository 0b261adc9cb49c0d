/* A process ends while streams are at work ("busy"), while an operation hangs ("hanging"), having left things behind
 * ("leaky"), having misused the driver ("wrong"), or having given everything back ("clean"). */
#include "cu.h"

enum { SIZE = 4 << 20 };

static CUdeviceptr device, range;
static unsigned char *pinned;
static void *stream, *event;

static void use(void)
{
    begin(1);
    stream = new_stream(NON_BLOCKING);
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    OK(cuMemAddressReserve(&range, SIZE, 0, 0, 0));
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    OK(cuStreamSynchronize(stream));
}

static void give_back(void)
{
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(device));
    OK(cuMemFreeHost(pinned));
    OK(cuMemAddressFree(range, SIZE));
    OK(cuDevicePrimaryCtxRelease_v2(1));
}

int main(int count, char **arguments)
{
    const char *how = count == 2 ? arguments[1] : "";
    int i;

    use();
    if (strcmp(how, "hanging") == 0) {
        OK(kvferry_sim_faults("exec:1=hang"));
    }
    for (i = 0; i < 1000 && (strcmp(how, "hanging") == 0 || strcmp(how, "busy") == 0); i++) {
        OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
    }
    if (strcmp(how, "clean") == 0 || strcmp(how, "wrong") == 0) {
        give_back();
    }
    if (strcmp(how, "wrong") == 0) {
        CHECK_FAILS(cuMemAlloc_v2(&device, 1), NO_CONTEXT);
    }
    return 0;
}
