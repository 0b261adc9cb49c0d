/* A process ends in the way of ends.h that its argument names. */
#include "cu.h"
#include "ends.h"

enum { SIZE = 4 << 20 };

static CUdeviceptr device, range;
static unsigned char *pinned;
static void *stream, *event;

static void queue_copy(void)
{
    OK(cuMemcpyHtoDAsync_v2(device, pinned, SIZE, stream));
}

static void use(void)
{
    begin(1);
    stream = new_stream(NON_BLOCKING);
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    OK(cuMemAddressReserve(&range, SIZE, 0, 0, 0));
    queue_copy();
    OK(cuStreamSynchronize(stream));
}

static void release(void)
{
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(device));
    OK(cuMemFreeHost(pinned));
    OK(cuMemAddressFree(range, SIZE));
    OK(cuDevicePrimaryCtxRelease_v2(1));
}

static void misuse(void)
{
    CHECK_FAILS(cuMemAlloc_v2(&device, 1), NO_CONTEXT);
}

int main(int count, char **arguments)
{
    static const struct uses uses = {use, queue_copy, release, misuse};

    use_and_leave(&uses, count == 2 ? arguments[1] : "");
    return 0;
}
