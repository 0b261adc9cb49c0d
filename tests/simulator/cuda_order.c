/* The adversarial scheduler: an earlier copy of the stream writes the sources of a batch. With some seeds the batch
 * reads them too early where its attributes allow any time, and with no seed where they ask for the stream's order. Not
 * for the thread sanitizer, which would report the intended race. */
#include "cu.h"

enum { SIZE = 1 << 14, SEEDS = 40 };

static CUdeviceptr device, block;
static unsigned char *pinned, *back;
static void *stream;

/* Whether the batch reads the bytes that the copy before it writes. */
static int right(int order, unsigned seed)
{
    struct attributes attributes = {order, {0, 0}, {0, 0}, 0};
    CUdeviceptr to = (CUdeviceptr)back, from = block;
    size_t size = SIZE, index = 0, failed;

    fill(pinned, SIZE, seed);
    OK(cuMemcpyHtoD_v2(device, pinned, SIZE));
    OK(cuMemsetD8_v2(block, 0, SIZE));
    OK(kvferry_sim_seed(seed, 1));
    OK(cuMemcpyDtoDAsync_v2(block, device, SIZE, stream));
    OK(cuMemcpyBatchAsync(&to, &from, &size, 1, &attributes, &index, 1, &failed, stream));
    OK(cuStreamSynchronize(stream));
    return memcmp(back, pinned, SIZE) == 0;
}

int main(void)
{
    unsigned seed;
    int found = 0;

    begin(0);
    OK(kvferry_sim_cost("0"));
    device = device_memory(SIZE);
    block = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    back = pinned_memory(SIZE);
    stream = new_stream(NON_BLOCKING);
    for (seed = 1; seed <= SEEDS; seed++) {
        CHECK(right(IN_STREAM, seed));
        found += !right(AT_ANY_TIME, seed);
    }
    CHECK(found > SEEDS / 8);
    return 0;
}
