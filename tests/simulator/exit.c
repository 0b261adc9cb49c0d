/* A process ends in the way of ends.h that its argument names. */
#include "acl.h"
#include "ends.h"

enum { SIZE = 4 << 20 };

static unsigned char *device, *pinned;
static void *stream, *event;

static void queue_copy(void)
{
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
}

static void use(void)
{
    begin(0);
    stream = new_stream();
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    queue_copy();
    OK(aclrtSynchronizeStream(stream));
}

static void release(void)
{
    OK(aclrtDestroyEvent(event));
    OK(aclrtDestroyStream(stream));
    OK(aclrtFree(device));
    OK(aclrtFreeHost(pinned));
    OK(aclrtResetDevice(0));
}

static void misuse(void)
{
    CHECK_FAILS(aclrtMalloc((void **)&device, 1, 0), NO_DEVICE_SET);
}

int main(int count, char **arguments)
{
    static const struct uses uses = {use, queue_copy, release, misuse};

    use_and_leave(&uses, count == 2 ? arguments[1] : "");
    return 0;
}
