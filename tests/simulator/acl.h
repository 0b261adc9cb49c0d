/* What the programs that test the simulator's AscendCL share. */
#ifndef ACL_H
#define ACL_H

#include "check.h"

enum { H2H, H2D, D2H, D2D, DEFAULT };
enum { HOST, DEVICE, UNREGISTERED };
enum {
    NOT_INITIALIZED = 100001,
    INITIALIZED_ALREADY = 100002,
    INVALID = 107000,
    NO_SUCH_DEVICE = 107001,
    NO_DEVICE_SET = 107002,
    OTHER_DEVICE = 107003,
    UNTIMED = 107006,
    UNALIGNED = 107008,
    NO_SUCH_HANDLE = 107017,
    UNSUPPORTED = 207000,
    NO_MEMORY = 207001,
    STREAM_FULL = 507002,
    LOST = 507010,
    DMA_ERROR = 507013,
    STREAM_TIMEOUT = 507046,
    EVENT_TIMEOUT = 507047,
    DRIVER_ERROR = 507899
};

struct location {
    uint32_t id;
    int32_t type;
};

struct attributes {
    struct location location;
    uint32_t page_size, reserved[4];
};

struct direction {
    struct location to, from;
    uint8_t reserved[16];
};

int aclInit(const char *config);
int aclFinalize(void);
const char *aclGetRecentErrMsg(void);
int aclrtSetDevice(int32_t device);
int aclrtGetDevice(int32_t *device);
int aclrtResetDevice(int32_t device);
int aclrtGetDeviceCount(uint32_t *count);
int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer);
int aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags);
int aclrtMalloc(void **address, size_t size, int policy);
int aclrtFree(void *address);
int aclrtMallocHost(void **address, size_t size);
int aclrtFreeHost(void *address);
int aclrtPointerGetAttributes(const void *address, struct attributes *attributes);
int aclrtMemset(void *to, size_t room, int32_t value, size_t size);
int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind);
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream);
int aclrtMemcpyBatchAsync(void **to, size_t *rooms, void **from, size_t *sizes, size_t count,
                          struct direction *attributes, size_t *indexes, size_t attribute_count, size_t *failed,
                          void *stream);
int aclrtMemcpyBatchAsyncV2(void **to, size_t *rooms, void **from, size_t *sizes, size_t count,
                            struct direction *attributes, size_t *indexes, size_t attribute_count, void *stream);
int aclrtMemcpy2dAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                       int kind, void *stream);
int aclrtEventElapsedTime(float *milliseconds, void *from, void *to);
int aclrtCreateStream(void **stream);
int aclrtDestroyStream(void *stream);
int aclrtSynchronizeStream(void *stream);
int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t timeout);
int aclrtCreateEvent(void **event);
int aclrtDestroyEvent(void *event);
int aclrtRecordEvent(void *event, void *stream);
int aclrtStreamWaitEvent(void *stream, void *event);
int aclrtSynchronizeEvent(void *event);
int aclrtSynchronizeEventWithTimeout(void *event, int32_t timeout);
int aclrtQueryEventStatus(void *event, int *status);

/* Initializes the runtime, and sets a device on this thread. */
static inline void begin(int device)
{
    int result = aclInit(NULL);

    CHECK(result == 0 || result == INITIALIZED_ALREADY);
    OK(aclrtSetDevice(device));
}

static inline void *device_memory(size_t size)
{
    void *address;

    OK(aclrtMalloc(&address, size, 0));
    return address;
}

static inline unsigned char *pinned_memory(size_t size)
{
    void *address;

    OK(aclrtMallocHost(&address, size));
    return address;
}

static inline void *new_stream(void)
{
    void *stream;

    OK(aclrtCreateStream(&stream));
    return stream;
}

static inline void *new_event(void)
{
    void *event;

    OK(aclrtCreateEvent(&event));
    return event;
}

#endif
