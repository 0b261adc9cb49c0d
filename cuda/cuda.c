#include "cuda.h"

#define SYMBOL(name, optional) {#name, offsetof(struct cuda, name), optional},
#define REQUIRED_SYMBOL(type, name, parameters) SYMBOL(name, 0)
#define OPTIONAL_SYMBOL(type, name, parameters) SYMBOL(name, 1)

static const struct cuda_symbol symbols[] = {
    CUDA_FUNCTIONS(REQUIRED_SYMBOL, OPTIONAL_SYMBOL)
    {NULL, 0, 0},
};

const struct cuda_symbol *const kvferry_cuda_symbols = symbols;

static struct cuda_result result_of(int code, const void *value)
{
    struct cuda_result result = {code, (uintptr_t)value};

    return result;
}

static struct cuda_result number_of(int code, int value)
{
    struct cuda_result result = {code, (uintptr_t)value};

    return result;
}

int kvferry_cuda_init(const struct cuda *cuda)
{
    return cuda->cuInit(0);
}

struct cuda_result kvferry_cuda_count(const struct cuda *cuda)
{
    int count = 0;
    int code = cuda->cuDeviceGetCount(&count);

    return number_of(code, count);
}

struct cuda_result kvferry_cuda_device(const struct cuda *cuda, int ordinal)
{
    int device = 0;
    int code = cuda->cuDeviceGet(&device, ordinal);

    return number_of(code, device);
}

struct cuda_result kvferry_cuda_retain(const struct cuda *cuda, int device)
{
    void *context = NULL;
    int code = cuda->cuDevicePrimaryCtxRetain(&context, device);

    return result_of(code, context);
}

int kvferry_cuda_release(const struct cuda *cuda, int device)
{
    return cuda->cuDevicePrimaryCtxRelease_v2(device);
}

int kvferry_cuda_push(const struct cuda *cuda, uintptr_t context)
{
    return cuda->cuCtxPushCurrent_v2((void *)context);
}

int kvferry_cuda_pop(const struct cuda *cuda)
{
    void *context;

    return cuda->cuCtxPopCurrent_v2(&context);
}

/* This thread's mode before kvferry_cuda_relax. */
static __thread int capture_mode;

int kvferry_cuda_relax(const struct cuda *cuda)
{
    capture_mode = CUDA_CAPTURE_RELAXED;
    return cuda->cuThreadExchangeStreamCaptureMode(&capture_mode);
}

int kvferry_cuda_restore(const struct cuda *cuda)
{
    return cuda->cuThreadExchangeStreamCaptureMode(&capture_mode);
}

int kvferry_cuda_attributes(const struct cuda *cuda, uintptr_t pointer, struct cuda_attributes *out)
{
    int attributes[] = {CUDA_POINTER_MEMORY_TYPE, CUDA_POINTER_IS_MANAGED, CUDA_POINTER_DEVICE_ORDINAL};
    void *outs[] = {&out->memory_type, &out->managed, &out->device};

    return cuda->cuPointerGetAttributes(sizeof attributes / sizeof *attributes, attributes, outs, pointer);
}

struct cuda_result kvferry_cuda_malloc(const struct cuda *cuda, size_t length)
{
    uintptr_t memory = 0;
    int code = cuda->cuMemAlloc_v2(&memory, length);
    struct cuda_result result = {code, memory};

    return result;
}

int kvferry_cuda_free(const struct cuda *cuda, uintptr_t memory)
{
    return cuda->cuMemFree_v2(memory);
}

struct cuda_result kvferry_cuda_malloc_host(const struct cuda *cuda, size_t length)
{
    void *memory = NULL;
    int code = cuda->cuMemHostAlloc(&memory, length, CUDA_PINNED_PORTABLE | CUDA_PINNED_DEVICE_MAP);

    return result_of(code, memory);
}

int kvferry_cuda_free_host(const struct cuda *cuda, uintptr_t memory)
{
    return cuda->cuMemFreeHost((void *)memory);
}

struct cuda_result kvferry_cuda_create_stream(const struct cuda *cuda)
{
    void *stream = NULL;
    int least = 0, greatest = 0, code;

    if (cuda->cuCtxGetStreamPriorityRange(&least, &greatest) != CUDA_SUCCESS) {
        least = 0; /* the priority of streams that were given none */
    }
    code = cuda->cuStreamCreateWithPriority(&stream, CUDA_STREAM_NON_BLOCKING, least);
    return result_of(code, stream);
}

int kvferry_cuda_destroy_stream(const struct cuda *cuda, uintptr_t stream)
{
    return cuda->cuStreamDestroy_v2((void *)stream);
}

int kvferry_cuda_synchronize_stream(const struct cuda *cuda, uintptr_t stream)
{
    return cuda->cuStreamSynchronize((void *)stream);
}

struct cuda_result kvferry_cuda_create_event(const struct cuda *cuda, unsigned int flags)
{
    void *event = NULL;
    int code = cuda->cuEventCreate(&event, flags);

    return result_of(code, event);
}

int kvferry_cuda_destroy_event(const struct cuda *cuda, uintptr_t event)
{
    return cuda->cuEventDestroy_v2((void *)event);
}

int kvferry_cuda_record_event(const struct cuda *cuda, uintptr_t event, uintptr_t stream)
{
    return cuda->cuEventRecord((void *)event, (void *)stream);
}

int kvferry_cuda_query_event(const struct cuda *cuda, uintptr_t event)
{
    return cuda->cuEventQuery((void *)event);
}

struct cuda_elapsed kvferry_cuda_elapsed(const struct cuda *cuda, uintptr_t from, uintptr_t to)
{
    struct cuda_elapsed elapsed = {CUDA_NOT_SUPPORTED, 0};

    if (cuda->cuEventElapsedTime != NULL) {
        elapsed.code = cuda->cuEventElapsedTime(&elapsed.milliseconds, (void *)from, (void *)to);
    }
    return elapsed;
}

const char *kvferry_cuda_error_name(const struct cuda *cuda, int error)
{
    const char *name = NULL;

    return cuda->cuGetErrorName(error, &name) == CUDA_SUCCESS ? name : NULL;
}

const char *kvferry_cuda_error_text(const struct cuda *cuda, int error)
{
    const char *text = NULL;

    return cuda->cuGetErrorString(error, &text) == CUDA_SUCCESS ? text : NULL;
}

static int copy_one(const struct cuda *cuda, enum cuda_kind kind, const struct cuda_copy *copy, void *stream)
{
    switch (kind) {
    case CUDA_HOST_TO_DEVICE:
        return cuda->cuMemcpyHtoDAsync_v2(copy->to, (const void *)copy->from, copy->length, stream);
    case CUDA_DEVICE_TO_HOST:
        return cuda->cuMemcpyDtoHAsync_v2((void *)copy->to, copy->from, copy->length, stream);
    default:
        return cuda->cuMemcpyDtoDAsync_v2(copy->to, copy->from, copy->length, stream);
    }
}

struct cuda_progress kvferry_cuda_copy(const struct cuda *cuda, enum cuda_kind kind, const struct cuda_copy *copies,
                                       size_t count, uintptr_t stream)
{
    struct cuda_progress progress = {CUDA_SUCCESS, 0};

    for (; progress.index < count; progress.index++) {
        progress.code = copy_one(cuda, kind, &copies[progress.index], (void *)stream);
        if (progress.code != CUDA_SUCCESS) {
            break;
        }
    }
    return progress;
}

struct cuda_progress kvferry_cuda_copy_batch(const struct cuda *cuda, uintptr_t *to, uintptr_t *from, size_t *lengths,
                                             size_t count, uintptr_t stream)
{
    struct cuda_batch_attributes attributes = {CUDA_SOURCE_ORDER_STREAM, {0, 0}, {0, 0}, 0};
    struct cuda_progress progress = {CUDA_NOT_SUPPORTED, SIZE_MAX};
    size_t start = 0; /* of the only attributes: they are those of all copies */

    if (cuda->cuMemcpyBatchAsync_v2 != NULL) {
        progress.code = cuda->cuMemcpyBatchAsync_v2(to, from, lengths, count, &attributes, &start, 1, (void *)stream);
    } else if (cuda->cuMemcpyBatchAsync != NULL) {
        progress.code = cuda->cuMemcpyBatchAsync(to, from, lengths, count, &attributes, &start, 1, &progress.index,
                                                 (void *)stream);
    }
    return progress;
}

int kvferry_cuda_has_peers(const struct cuda *cuda)
{
    return cuda->cuDeviceCanAccessPeer != NULL && cuda->cuCtxEnablePeerAccess != NULL && cuda->cuMemcpyPeerAsync != NULL;
}

struct cuda_result kvferry_cuda_can_access(const struct cuda *cuda, int device, int peer)
{
    int can = 0;
    int code = cuda->cuDeviceCanAccessPeer(&can, device, peer);

    return number_of(code, can);
}

int kvferry_cuda_enable_peer(const struct cuda *cuda, uintptr_t context)
{
    int code = cuda->cuCtxEnablePeerAccess((void *)context, 0);

    return code == CUDA_PEER_ACCESS_ENABLED ? CUDA_SUCCESS : code;
}

struct cuda_progress kvferry_cuda_copy_peer(const struct cuda *cuda, uintptr_t to_context, uintptr_t from_context,
                                            const struct cuda_copy *copies, size_t count, uintptr_t stream)
{
    struct cuda_progress progress = {CUDA_SUCCESS, 0};

    for (; progress.index < count; progress.index++) {
        const struct cuda_copy *copy = &copies[progress.index];

        progress.code = cuda->cuMemcpyPeerAsync(copy->to, (void *)to_context, copy->from, (void *)from_context,
                                                copy->length, (void *)stream);
        if (progress.code != CUDA_SUCCESS) {
            break;
        }
    }
    return progress;
}

struct cuda_result kvferry_cuda_stream_context(const struct cuda *cuda, uintptr_t stream)
{
    void *context = NULL;
    int code = cuda->cuStreamGetCtx((void *)stream, &context);

    return result_of(code, context);
}

struct cuda_result kvferry_cuda_capture(const struct cuda *cuda, uintptr_t stream)
{
    int state = CUDA_CAPTURES_NOTHING;
    int code = CUDA_SUCCESS;

    if (cuda->cuStreamIsCapturing != NULL) {
        code = cuda->cuStreamIsCapturing((void *)stream, &state);
    }
    return number_of(code, state);
}

void kvferry_cuda_reached(void *argument); /* call.go */

int kvferry_cuda_call(const struct cuda *cuda, uintptr_t stream, void *argument)
{
    return cuda->cuLaunchHostFunc((void *)stream, kvferry_cuda_reached, argument);
}
