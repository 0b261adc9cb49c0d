/* What the programs that test the simulator share: AscendCL's functions, and checks. A program tests one thing after
 * the other and ends with 0, or says what was wrong and ends with 1. */
#ifndef ACL_H
#define ACL_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvferry_sim.h"

enum { H2H, H2D, D2H, D2D, DEFAULT };
enum { HOST, DEVICE, UNREGISTERED };
enum {
    NOT_INITIALIZED = 100001,
    INITIALIZED_ALREADY = 100002,
    INVALID = 107000,
    NO_SUCH_DEVICE = 107001,
    NO_DEVICE_SET = 107002,
    OTHER_DEVICE = 107003,
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

#define CHECK(what)                                                                                       \
    do {                                                                                                  \
        if (!(what)) {                                                                                    \
            const char *why_ = aclGetRecentErrMsg();                                                      \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, why_ ? why_ : "");      \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

#define CHECK_EQUAL(got, wanted)                                                                          \
    do {                                                                                                  \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);                                 \
        if (got_ != wanted_) {                                                                            \
            const char *why_ = aclGetRecentErrMsg();                                                      \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld (%s)\n", __FILE__, __LINE__, #got, got_, wanted_, \
                    why_ ? why_ : "");                                                                    \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

/* A call that must fail with that code, and leave a text about it, once. */
#define CHECK_FAILS(call, code)                                                                           \
    do {                                                                                                  \
        aclGetRecentErrMsg();                                                                             \
        CHECK_EQUAL(call, code);                                                                          \
        CHECK(aclGetRecentErrMsg() != NULL);                                                              \
        CHECK(aclGetRecentErrMsg() == NULL);                                                              \
    } while (0)

#define OK(call) CHECK_EQUAL(call, 0)

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

/* Bytes in which no part repeats another. */
static inline void fill(void *memory, size_t length, uint32_t seed)
{
    unsigned char *bytes = memory;
    uint64_t state = seed * 2654435761u + 88172645463325252u;
    size_t i;

    for (i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes[i] = (unsigned char)(state >> 32);
    }
}

/* The number behind a name in the simulator's report; it is the first of that name. */
static inline long long reported(const char *name)
{
    size_t size = kvferry_sim_report(NULL, 0) + 1;
    char *text = malloc(size), key[64], *at;
    long long number;

    CHECK(text != NULL && kvferry_sim_report(text, size) < size);
    snprintf(key, sizeof key, "\"%s\": ", name);
    at = strstr(text, key);
    CHECK(at != NULL);
    number = strtoll(at + strlen(key), NULL, 10);
    free(text);
    return number;
}

/* Runs a function on a thread of its own, to its end. */
static inline void on_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, body, argument) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static inline double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#endif
