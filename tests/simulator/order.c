/* The adversarial scheduler: without a wait that is needed, the bytes are wrong with many seeds; with it they are right
 * with every seed. Not for the thread sanitizer, which would report the intended race. */
#include "acl.h"

enum { SIZE = 1 << 14, SEEDS = 40 };

static unsigned char *device, *block, *pinned, *back;
static void *stream, *second, *event;

/* The host reads the target of a copy. */
static void read_back(int wait)
{
    OK(aclrtMemcpyAsync(back, SIZE, device, SIZE, D2H, stream));
    if (wait) {
        OK(aclrtSynchronizeStream(stream));
    }
}

/* The host writes to the source of a copy. */
static void reuse_source(int wait)
{
    OK(aclrtMemcpyAsync(device, SIZE, back, SIZE, H2D, stream));
    if (wait) {
        OK(aclrtRecordEvent(event, stream));
        OK(aclrtSynchronizeEvent(event));
    }
    memset(back, 0, SIZE);
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtMemcpy(back, SIZE, device, SIZE, D2H));
}

/* One stream copies out the bytes that another gathers. */
static void gather_and_copy(int wait)
{
    OK(aclrtMemcpyAsync(block, SIZE / 2, device, SIZE / 2, D2D, stream));
    OK(aclrtMemcpyAsync(block + SIZE / 2, SIZE / 2, device + SIZE / 2, SIZE / 2, D2D, stream));
    OK(aclrtRecordEvent(event, stream));
    if (wait) {
        OK(aclrtStreamWaitEvent(second, event));
    }
    OK(aclrtMemcpyAsync(back, SIZE, block, SIZE, D2H, second));
    OK(aclrtSynchronizeStream(second));
}

/* The host waits for an event that was recorded before the copy. */
static void wait_for_place(int wait)
{
    if (!wait) {
        OK(aclrtRecordEvent(event, stream));
    }
    OK(aclrtMemcpyAsync(back, SIZE, device, SIZE, D2H, stream));
    if (wait) {
        OK(aclrtRecordEvent(event, stream));
    }
    OK(aclrtSynchronizeEvent(event));
}

/* Whether the bytes of a way of copying are right, with one seed. */
static int right(void (*copy)(int), int wait, unsigned seed)
{
    int equal;

    fill(pinned, SIZE, seed);
    OK(aclrtMemset(block, SIZE, 0, SIZE));
    OK(aclrtMemset(device, SIZE, 0, SIZE));
    if (copy == reuse_source) {
        memcpy(back, pinned, SIZE);
    } else {
        memset(back, 0, SIZE);
        OK(aclrtMemcpy(device, SIZE, pinned, SIZE, H2D));
    }
    OK(kvferry_sim_seed(seed, 1));
    copy(wait);
    equal = memcmp(back, pinned, SIZE) == 0;
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtSynchronizeStream(second));
    return equal;
}

static void try_seeds(void (*copy)(int))
{
    unsigned seed;
    int found = 0;

    for (seed = 1; seed <= SEEDS; seed++) {
        CHECK(right(copy, 1, seed));
        found += !right(copy, 0, seed);
    }
    CHECK(found > SEEDS / 4);
}

/* Nothing is held back for ever where nothing waits. */
static void test_delays_end(void)
{
    struct timespec pause = {0, 1000000};
    int status = 0, i;

    for (i = 0; i < 100; i++) {
        OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    }
    OK(aclrtRecordEvent(event, stream));
    while (status == 0) {
        nanosleep(&pause, NULL);
        OK(aclrtQueryEventStatus(event, &status));
    }
}

int main(void)
{
    begin(0);
    OK(kvferry_sim_cost("0"));
    device = device_memory(SIZE);
    block = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    back = pinned_memory(SIZE);
    stream = new_stream();
    second = new_stream();
    event = new_event();
    try_seeds(read_back);
    try_seeds(reuse_source);
    try_seeds(gather_and_copy);
    try_seeds(wait_for_place);
    test_delays_end();
    OK(kvferry_sim_seed(0, 0));
    return 0;
}
