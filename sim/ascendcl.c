/* AscendCL on simulated devices: the functions of acl/acl.h and acl/acl_rt.h for memory, copies, streams and events.
 *
 * Codes are those of acl/error_codes/rt_error_codes.h of CANN 8, and of acl/acl_base.h for those below 107000. */
#include "call.h"
#include "event.h"
#include "submit.h"

#include <stdlib.h>
#include <string.h>

#define CALLS(CALL)                                                                                                \
    CALL(aclInit) CALL(aclFinalize) CALL(aclrtSetDevice) CALL(aclrtGetDevice) CALL(aclrtResetDevice)               \
    CALL(aclrtGetDeviceCount) CALL(aclrtDeviceCanAccessPeer) CALL(aclrtDeviceEnablePeerAccess) CALL(aclrtMalloc)   \
    CALL(aclrtFree) CALL(aclrtMallocHost) CALL(aclrtFreeHost) CALL(aclrtPointerGetAttributes) CALL(aclrtMemset)    \
    CALL(aclrtMemcpy) CALL(aclrtMemcpyAsync) CALL(aclrtMemcpyBatchAsync) CALL(aclrtCreateStream)                   \
    CALL(aclrtDestroyStream) CALL(aclrtSynchronizeStream) CALL(aclrtSynchronizeStreamWithTimeout)                  \
    CALL(aclrtCreateEvent) CALL(aclrtDestroyEvent) CALL(aclrtRecordEvent) CALL(aclrtStreamWaitEvent)               \
    CALL(aclrtSynchronizeEvent) CALL(aclrtSynchronizeEventWithTimeout) CALL(aclrtQueryEventStatus)                  \
    CALL(aclrtMemcpyBatchAsyncV2) CALL(aclrtMemcpy2dAsync) CALL(aclrtEventElapsedTime)

#define NUMBER_OF(name) CALL_##name,
#define NAME_OF(name) #name,
enum call { CALLS(NUMBER_OF) CALL_COUNT };
static const char *const names[SIM_CALLS_MAX] = {CALLS(NAME_OF)};

static const int codes[SIM_REASONS] = {
    [-SIM_INVALID] = 107000,         /* param invalid */
    [-SIM_UNINITIALIZED] = 100001,   /* not initialised */
    [-SIM_REPEATED] = 100002,        /* initialised already */
    [-SIM_NO_SUCH_DEVICE] = 107001,  /* invalid device id */
    [-SIM_NO_DEVICE_SET] = 107002,   /* current context null */
    [-SIM_OTHER_DEVICE] = 107003,    /* stream not in current context */
    [-SIM_UNALIGNED] = 107008,       /* memory address unaligned */
    [-SIM_NO_SUCH_HANDLE] = 107017,  /* invalid handle */
    [-SIM_UNSUPPORTED] = 207000,     /* feature not supported */
    [-SIM_NO_MEMORY] = 207001,       /* memory allocation error */
    [-SIM_NO_STREAM] = 207008,       /* no stream resource */
    [-SIM_STREAM_FULL] = 507002,     /* task full in stream */
    [-SIM_STREAM_TIMEOUT] = 507046,  /* stream sync time out */
    [-SIM_EVENT_TIMEOUT] = 507047,   /* event sync time out */
    [-SIM_LOST] = 507010,            /* ts lost heartbeat */
    [-SIM_BROKEN] = 507899,          /* drv internal error */
    [-SIM_DMA_ERROR] = 507013,       /* sys dma error */
    [-SIM_FORKED] = 107002,
    [-SIM_NOT_PERMITTED] = 207000,
    [-SIM_REGISTERED] = 107000,
    [-SIM_UNREGISTERED] = 107000,
    [-SIM_OTHER_MEMORY] = 107003,
    [-SIM_UNTIMED] = 107006,         /* event timestamp invalid */
    [-SIM_NOT_READY] = 107006,
    [-SIM_NO_PEER] = 207000,
};

const struct sim_api sim_api = {
    .runtime = "AscendCL",
    .prefix = "acl",
    .report_suffix = "",
    .calls = names,
    .call_count = CALL_COUNT,
    .codes = codes,
    .alignment = 64, /* acl/acl_rt.h */
};

enum { BATCH_MAX = 4096 }; /* elements: DEVMM_MEMCPY_BATCH_MAX_COUNT of CANN's ascend_hal_define.h */

enum { HEIGHT_MAX = 5 * 1024 * 1024 }; /* rows of a matrix: CANN's page on aclrtMemcpy2dAsync */

enum location { LOCATION_HOST, LOCATION_DEVICE, LOCATION_UNREGISTERED }; /* aclrtMemLocationType */
enum status { STATUS_NOT_READY, STATUS_COMPLETE };                      /* aclrtEventRecordedStatus */

struct location_of {
    uint32_t id;
    int32_t type;
};

struct pointer_attributes {
    struct location_of location;
    uint32_t page_size;
    uint32_t reserved[4];
};

struct batch_attributes {
    struct location_of to, from;
    uint8_t reserved[16];
};

SIM_EXPORT int aclInit(const char *config)
{
    int result = sim_begin(CALL_aclInit, NEEDS_NOTHING);

    (void)config;
    if (result == SIM_OK && sim.initialized) {
        result = sim_fail(SIM_REPEATED, "the runtime is initialised already");
    }
    return sim_end(result == SIM_OK ? sim_initialize() : result);
}

SIM_EXPORT int aclFinalize(void)
{
    int result = sim_begin(CALL_aclFinalize, NEEDS_INIT);

    return sim_end(result == SIM_OK ? sim_finalize() : result);
}

/* As the real one, it also forgets the text, which is valid until the thread's next call. */
SIM_EXPORT const char *aclGetRecentErrMsg(void)
{
    return sim_message();
}

SIM_EXPORT int aclrtGetDeviceCount(uint32_t *count)
{
    int result = sim_begin(CALL_aclrtGetDeviceCount, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(count)) == SIM_OK) {
        *count = (uint32_t)sim.devices;
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtSetDevice(int32_t device)
{
    int result = sim_begin(CALL_aclrtSetDevice, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_retain_device(device)) == SIM_OK) {
        sim_set_current(sim_current_for(device));
    }
    return sim_end(result);
}

/* Streams, events and memory of the device stay, and show in the report as leaked. */
SIM_EXPORT int aclrtResetDevice(int32_t device)
{
    int deferred, result = sim_begin_release(CALL_aclrtResetDevice, NEEDS_INIT, &deferred);
    bool last;

    return sim_end_release(result == SIM_OK ? sim_release_device(device, &last) : result, deferred);
}

SIM_EXPORT int aclrtGetDevice(int32_t *device)
{
    int result = sim_begin(CALL_aclrtGetDevice, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(device)) == SIM_OK) {
        *device = sim_current();
        result = *device >= 0 ? SIM_OK : sim_fail(SIM_NO_DEVICE_SET, "aclrtGetDevice on a thread with no device set");
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer)
{
    int result = sim_begin(CALL_aclrtDeviceCanAccessPeer, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(can)) == SIM_OK && (result = sim_check_device(device)) == SIM_OK &&
        (result = sim_check_device(peer)) == SIM_OK) {
        *can = device != peer && !sim.no_peers;
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags)
{
    int result = sim_begin(CALL_aclrtDeviceEnablePeerAccess, NEEDS_DEVICE);

    if (result == SIM_OK) {
        result = flags == 0 ? sim_enable_peer(peer) : sim_fail(SIM_INVALID, "flags are reserved, not %u", flags);
    }
    return sim_end(result == SIM_PEER_ENABLED ? SIM_OK : result);
}

SIM_EXPORT int aclrtMalloc(void **address, size_t size, int policy)
{
    int result = sim_begin(CALL_aclrtMalloc, NEEDS_DEVICE);

    (void)policy; /* huge pages make no difference here */
    return sim_end(result == SIM_OK ? sim_malloc(MEMORY_DEVICE, size, address) : result);
}

SIM_EXPORT int aclrtFree(void *address)
{
    int deferred, result = sim_begin_release(CALL_aclrtFree, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_free(MEMORY_DEVICE, address) : result, deferred);
}

SIM_EXPORT int aclrtMallocHost(void **address, size_t size)
{
    int result = sim_begin(CALL_aclrtMallocHost, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_malloc(MEMORY_HOST, size, address) : result);
}

SIM_EXPORT int aclrtFreeHost(void *address)
{
    int deferred, result = sim_begin_release(CALL_aclrtFreeHost, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_free(MEMORY_HOST, address) : result, deferred);
}

SIM_EXPORT int aclrtMemset(void *to, size_t room, int32_t value, size_t size)
{
    int result = sim_begin(CALL_aclrtMemset, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_set_now(to, room, value, size) : result);
}

/* Turns an aclrtMemcpyKind into the claimed kind of a copy: -1 for ACL_MEMCPY_DEFAULT. */
static int claim(int kind, int *claimed)
{
    if (kind < 0 || kind > KINDS) {
        return sim_fail(SIM_INVALID, "a copy of kind %d", kind);
    }
    *claimed = kind == KINDS ? -1 : kind;
    return SIM_OK;
}

SIM_EXPORT int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind)
{
    int claimed = -1, result = sim_begin(CALL_aclrtMemcpy, NEEDS_DEVICE);

    if (result == SIM_OK && (result = claim(kind, &claimed)) == SIM_OK) {
        result = sim_copy_now(to, room, from, size, claimed);
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream)
{
    int claimed = -1, result = sim_begin(CALL_aclrtMemcpyAsync, NEEDS_DEVICE);

    if (result == SIM_OK && (result = claim(kind, &claimed)) == SIM_OK) {
        result = sim_copy_async(to, room, from, size, claimed, stream);
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtCreateStream(void **stream)
{
    int result = sim_begin(CALL_aclrtCreateStream, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_create_stream(false, stream) : result);
}

SIM_EXPORT int aclrtDestroyStream(void *stream)
{
    int deferred, result = sim_begin_release(CALL_aclrtDestroyStream, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_destroy_stream(stream) : result, deferred);
}

static int check_timeout(int32_t timeout)
{
    return timeout >= -1 ? SIM_OK : sim_fail(SIM_INVALID, "a timeout of %d ms", timeout);
}

SIM_EXPORT int aclrtSynchronizeStream(void *stream)
{
    int result = sim_begin(CALL_aclrtSynchronizeStream, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_synchronize_stream(stream, -1) : result);
}

SIM_EXPORT int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t timeout)
{
    int result = sim_begin(CALL_aclrtSynchronizeStreamWithTimeout, NEEDS_DEVICE);

    if (result == SIM_OK && (result = check_timeout(timeout)) == SIM_OK) {
        result = sim_synchronize_stream(stream, timeout);
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtCreateEvent(void **event)
{
    int result = sim_begin(CALL_aclrtCreateEvent, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_create_event(true, event) : result);
}

SIM_EXPORT int aclrtDestroyEvent(void *event)
{
    int deferred, result = sim_begin_release(CALL_aclrtDestroyEvent, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_destroy_event(event) : result, deferred);
}

SIM_EXPORT int aclrtRecordEvent(void *event, void *stream)
{
    int result = sim_begin(CALL_aclrtRecordEvent, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_record_event(event, stream) : result);
}

SIM_EXPORT int aclrtStreamWaitEvent(void *stream, void *event)
{
    int result = sim_begin(CALL_aclrtStreamWaitEvent, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_stream_wait_event(stream, event) : result);
}

SIM_EXPORT int aclrtSynchronizeEvent(void *event)
{
    int result = sim_begin(CALL_aclrtSynchronizeEvent, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_synchronize_event(event, -1) : result);
}

SIM_EXPORT int aclrtQueryEventStatus(void *event, int *status)
{
    int result = sim_begin(CALL_aclrtQueryEventStatus, NEEDS_DEVICE);
    bool complete;

    if (result == SIM_OK && (result = sim_check_out(status)) == SIM_OK &&
        (result = sim_query_event(event, &complete)) == SIM_OK) {
        *status = complete ? STATUS_COMPLETE : STATUS_NOT_READY;
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtEventElapsedTime(float *milliseconds, void *from, void *to)
{
    int result = sim_begin(CALL_aclrtEventElapsedTime, NEEDS_DEVICE);

    if (result == SIM_OK && (result = sim_check_out(milliseconds)) == SIM_OK) {
        result = sim_elapsed(milliseconds, from, to);
    }
    return sim_end(result);
}

/* The rows of a matrix, as the copies of a batch; pitches are at least as long as the rows. */
static int copy_rows(unsigned char *to, size_t to_pitch, unsigned char *from, size_t from_pitch, size_t width,
                     size_t height, int claimed, void *stream)
{
    void **ends = calloc(2 * height, sizeof *ends);
    size_t *sizes = calloc(height, sizeof *sizes), failed, i;
    struct batch batch = {ends, sizes, ends != NULL ? ends + height : NULL, sizes, height, NULL, true, false};
    int result = SIM_NO_MEMORY;

    if (ends == NULL || sizes == NULL) {
        sim_fail(SIM_NO_MEMORY, "there is no memory for a matrix of %zu rows", height);
    } else {
        for (i = 0; i < height; i++) {
            batch.to[i] = to + i * to_pitch;
            batch.from[i] = from + i * from_pitch;
            sizes[i] = width;
        }
        result = sim_copy_batch(&batch, claimed, &failed, stream);
    }
    free(ends);
    free(sizes);
    return result;
}

SIM_EXPORT int aclrtMemcpy2dAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                           size_t height, int kind, void *stream)
{
    int claimed = -1, result = sim_begin(CALL_aclrtMemcpy2dAsync, NEEDS_DEVICE);

    if (result == SIM_OK && (result = claim(kind, &claimed)) == SIM_OK && claimed != KIND_H2D && claimed != KIND_D2H) {
        result = sim_fail(SIM_UNSUPPORTED, "a matrix is copied between host and device only");
    }
    if (result == SIM_OK &&
        (height == 0 || height > HEIGHT_MAX || width == 0 || to_pitch < width || from_pitch < width)) {
        result = sim_fail(SIM_INVALID, "%zu rows of %zu bytes, %zu and %zu apart", height, width, to_pitch, from_pitch);
    }
    if (result == SIM_OK) {
        result = copy_rows(to, to_pitch, (unsigned char *)from, from_pitch, width, height, claimed, stream);
    }
    return sim_end(result);
}

#ifndef KVFERRY_SIM_OLDER_CANN /* which lacks these */

SIM_EXPORT int aclrtSynchronizeEventWithTimeout(void *event, int32_t timeout)
{
    int result = sim_begin(CALL_aclrtSynchronizeEventWithTimeout, NEEDS_DEVICE);

    if (result == SIM_OK && (result = check_timeout(timeout)) == SIM_OK) {
        result = sim_synchronize_event(event, timeout);
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtPointerGetAttributes(const void *address, struct pointer_attributes *attributes)
{
    int result = sim_begin(CALL_aclrtPointerGetAttributes, NEEDS_INIT);
    struct allocation *owner;
    enum sim_memory memory;

    if (result != SIM_OK || (result = sim_check_out(attributes)) != SIM_OK) {
        return sim_end(result);
    }
    memory = sim_locate(address, &owner);
    memset(attributes, 0, sizeof *attributes);
    attributes->location.type = LOCATION_UNREGISTERED;
    if (memory == MEMORY_DEVICE) {
        attributes->location.type = LOCATION_DEVICE;
        attributes->location.id = (uint32_t)owner->device;
    } else if (memory == MEMORY_HOST) {
        attributes->location.type = LOCATION_HOST;
    } else if (memory == MEMORY_FREED) {
        result = sim_misuse(MISUSE_use_after_free, SIM_INVALID, "%p is in memory that was freed", address);
    }
    return sim_end(result);
}

/* Finds the one direction of a batch. Attributes i are those of the elements from indexes[i] on. */
static int batch_direction(const struct batch_attributes *attributes, const size_t *indexes, size_t count,
                           size_t elements, int *claimed)
{
    size_t i;

    if (attributes == NULL || indexes == NULL || count == 0 || count > elements) {
        return sim_fail(SIM_INVALID, "%zu attributes for %zu copies", count, elements);
    }
    *claimed = attributes[0].to.type == LOCATION_DEVICE ? KIND_H2D : KIND_D2H;
    for (i = 0; i < count; i++) {
        bool to = attributes[i].to.type == LOCATION_DEVICE, from = attributes[i].from.type == LOCATION_DEVICE;
        const struct location_of *device = to ? &attributes[i].to : &attributes[i].from;

        if (indexes[i] >= elements || (i == 0 ? indexes[i] != 0 : indexes[i] <= indexes[i - 1])) {
            return sim_fail(SIM_INVALID, "attributes %zu of a batch begin at copy %zu", i, indexes[i]);
        }
        if (to == from || *claimed != (to ? KIND_H2D : KIND_D2H)) {
            return sim_fail(SIM_INVALID, "a batch is not in one direction between host and device");
        }
        if (device->id != (uint32_t)sim_current()) {
            return sim_fail(SIM_INVALID, "attributes %zu of a batch name device %u, and device %d is set", i,
                            device->id, sim_current());
        }
    }
    return SIM_OK;
}

static int copy_batch(const struct batch *batch, const struct batch_attributes *attributes, const size_t *indexes,
                      size_t attribute_count, size_t *failed, void *stream)
{
    int claimed = -1, result;

    *failed = SIZE_MAX;
    if (batch->to == NULL || batch->rooms == NULL || batch->from == NULL || batch->sizes == NULL || batch->count == 0 ||
        batch->count > BATCH_MAX) {
        return sim_fail(SIM_INVALID, "a batch of %zu copies, of at most %d", batch->count, BATCH_MAX);
    }
    result = batch_direction(attributes, indexes, attribute_count, batch->count, &claimed);
    return result == SIM_OK ? sim_copy_batch(batch, claimed, failed, stream) : result;
}

SIM_EXPORT int aclrtMemcpyBatchAsync(void **to, size_t *rooms, void **from, size_t *sizes, size_t count,
                              struct batch_attributes *attributes, size_t *indexes, size_t attribute_count,
                              size_t *failed, void *stream)
{
    int result = sim_begin(CALL_aclrtMemcpyBatchAsync, NEEDS_DEVICE);
    struct batch batch = {to, rooms, from, sizes, count, NULL, false, false};

    if (result == SIM_OK && (result = sim_check_out(failed)) == SIM_OK) {
        result = copy_batch(&batch, attributes, indexes, attribute_count, failed, stream);
    }
    return sim_end(result);
}

SIM_EXPORT int aclrtMemcpyBatchAsyncV2(void **to, size_t *rooms, void **from, size_t *sizes, size_t count,
                                struct batch_attributes *attributes, size_t *indexes, size_t attribute_count,
                                void *stream)
{
    int result = sim_begin(CALL_aclrtMemcpyBatchAsyncV2, NEEDS_DEVICE);
    struct batch batch = {to, rooms, from, sizes, count, NULL, false, false};
    size_t failed;

    if (result == SIM_OK) {
        result = copy_batch(&batch, attributes, indexes, attribute_count, &failed, stream);
    }
    return sim_end(result);
}

#endif
