/* A process ends while streams are at work ("busy"), while an operation hangs ("hanging"), having left things behind
 * ("leaky"), having misused the runtime ("wrong"), or having given everything back ("clean"). */
#include "acl.h"

enum { SIZE = 4 << 20 };

static unsigned char *device, *pinned;
static void *stream, *event;

static void use(void)
{
    begin(0);
    stream = new_stream();
    event = new_event();
    device = device_memory(SIZE);
    pinned = pinned_memory(SIZE);
    OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    OK(aclrtSynchronizeStream(stream));
}

static void give_back(void)
{
    OK(aclrtDestroyEvent(event));
    OK(aclrtDestroyStream(stream));
    OK(aclrtFree(device));
    OK(aclrtFreeHost(pinned));
    OK(aclrtResetDevice(0));
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
        OK(aclrtMemcpyAsync(device, SIZE, pinned, SIZE, H2D, stream));
    }
    if (strcmp(how, "clean") == 0 || strcmp(how, "wrong") == 0) {
        give_back();
    }
    if (strcmp(how, "wrong") == 0) {
        CHECK_FAILS(aclrtMalloc((void **)&device, 1, 0), NO_DEVICE_SET);
    }
    return 0;
}
