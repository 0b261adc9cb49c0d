/* Handles of contexts, and of the default stream. */
#include "cuda_api.h"

#define CONTEXT_MARK ((uintptr_t)0x5ac2 << 48) /* that no address has */
#define STREAM_LEGACY ((void *)1)

void *cuda_context(int device)
{
    return device >= 0 ? (void *)(CONTEXT_MARK | (uintptr_t)device) : NULL;
}

int cuda_device_of(const void *context)
{
    uintptr_t number = (uintptr_t)context ^ CONTEXT_MARK;

    return number < (uintptr_t)sim.devices && sim.device[number].retained > 0 ? (int)number : -1;
}

void *cuda_stream(void *stream)
{
    return stream == STREAM_LEGACY ? NULL : stream;
}
