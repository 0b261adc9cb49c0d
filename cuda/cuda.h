/*
 * The CUDA driver API as far as it is used here. Prototypes and numbers are those of NVIDIA's public header cuda.h, with
 * int for its enumerations and for CUdevice, void * for its handles, and uintptr_t for CUdeviceptr. Functions have the
 * names under which the library exports them: the header maps cuMemAlloc to cuMemAlloc_v2, say. Comments at the calls have
 * further promises of a function, from its page in NVIDIA's public reference of the driver API.
 */
#ifndef KVFERRY_CUDA_H
#define KVFERRY_CUDA_H

#include <stddef.h>
#include <stdint.h>

/* Results of functions: success, and the errors that are handled here. */
enum {
    CUDA_SUCCESS = 0,
    CUDA_INVALID_VALUE = 1,
    CUDA_NOT_INITIALIZED = 3, /* before cuInit, and in a process that was forked after it */
    CUDA_NOT_READY = 600,
    CUDA_PEER_ACCESS_ENABLED = 704, /* already, by the application or by us */
    CUDA_NOT_SUPPORTED = 801,
};

/* CUmemorytype, of memory that CUDA knows. */
enum { CUDA_MEMORY_HOST = 1, CUDA_MEMORY_DEVICE = 2 };

/* CUpointer_attribute, each with its type. */
enum {
    CUDA_POINTER_CONTEXT = 1,        /* CUcontext; NULL for memory of cuMemCreate */
    CUDA_POINTER_MEMORY_TYPE = 2,    /* unsigned int */
    CUDA_POINTER_IS_MANAGED = 8,     /* unsigned int */
    CUDA_POINTER_DEVICE_ORDINAL = 9, /* int */
    CUDA_POINTER_RANGE_START = 11,   /* CUdeviceptr: of the allocation */
    CUDA_POINTER_RANGE_SIZE = 12,    /* size_t */
};

/* Flags of cuMemHostAlloc, cuStreamCreateWithPriority and cuEventCreate. */
enum { CUDA_PINNED_PORTABLE = 1 };     /* page-locked for all contexts */
enum { CUDA_PINNED_DEVICE_MAP = 2 };   /* kernels have access, at the same address */
enum { CUDA_STREAM_NON_BLOCKING = 1 }; /* has no order with the stream 0 of the application */
enum { CUDA_EVENT_TIMED = 0, CUDA_EVENT_DISABLE_TIMING = 2 };

/* CUstreamCaptureStatus. */
enum { CUDA_CAPTURES_NOTHING = 0 };

/* Handles of default streams: the context's and, the last such handle, the thread's. 0 is the first, too. */
enum { CUDA_STREAM_LEGACY = 1, CUDA_STREAM_PER_THREAD = 2 };

/* CUstreamCaptureMode: the thread's calls do not disturb the graphs that other threads capture. */
enum { CUDA_CAPTURE_RELAXED = 2 };

/* CUmemLocation */
struct cuda_location {
    int type, id;
};

/* CUmemcpyAttributes. The locations are hints for managed memory, and zeros are none. */
struct cuda_batch_attributes {
    int source_order;
    struct cuda_location source_hint, destination_hint;
    unsigned int flags;
};

/* CUmemcpySrcAccessOrder: sources are read when the stream has come to the batch. */
enum { CUDA_SOURCE_ORDER_STREAM = 1 };

/*
 * The functions. Optional are those that came with later drivers: cuMemcpyBatchAsync with CUDA 12.8, and _v2, which does
 * without the index of the copy that failed, with 13.0; cuStreamIsCapturing, which only guards; and those for peers, without
 * which bytes pass through the host. All others are in every driver since CUDA 10.1.
 */
#define CUDA_FUNCTIONS(REQUIRED, OPTIONAL)                                                                             \
    REQUIRED(int, cuInit, (unsigned int flags))                                                                       \
    REQUIRED(int, cuGetErrorName, (int error, const char **out))                                                      \
    REQUIRED(int, cuGetErrorString, (int error, const char **out))                                                    \
    REQUIRED(int, cuDeviceGetCount, (int *out))                                                                       \
    REQUIRED(int, cuDeviceGet, (int *out, int ordinal))                                                               \
    REQUIRED(int, cuDevicePrimaryCtxRetain, (void **out, int device))                                                 \
    REQUIRED(int, cuDevicePrimaryCtxRelease_v2, (int device))                                                         \
    REQUIRED(int, cuCtxPushCurrent_v2, (void *context))                                                               \
    REQUIRED(int, cuCtxPopCurrent_v2, (void **out))                                                                   \
    REQUIRED(int, cuCtxGetDevice, (int *out))                                                                         \
    REQUIRED(int, cuThreadExchangeStreamCaptureMode, (int *mode))                                                     \
    REQUIRED(int, cuPointerGetAttributes,                                                                             \
             (unsigned int count, int *attributes, void **outs, uintptr_t pointer))                                   \
    REQUIRED(int, cuMemAlloc_v2, (uintptr_t *out, size_t length))                                                     \
    REQUIRED(int, cuMemFree_v2, (uintptr_t memory))                                                                   \
    REQUIRED(int, cuMemHostAlloc, (void **out, size_t length, unsigned int flags))                                    \
    REQUIRED(int, cuMemFreeHost, (void *memory))                                                                      \
    REQUIRED(int, cuCtxGetStreamPriorityRange, (int *least, int *greatest))                                           \
    REQUIRED(int, cuStreamCreateWithPriority, (void **out, unsigned int flags, int priority))                         \
    REQUIRED(int, cuStreamDestroy_v2, (void *stream))                                                                 \
    REQUIRED(int, cuStreamSynchronize, (void *stream))                                                                \
    REQUIRED(int, cuStreamGetCtx, (void *stream, void **out))                                                         \
    REQUIRED(int, cuStreamWaitEvent, (void *stream, void *event, unsigned int flags))                                 \
    REQUIRED(int, cuLaunchHostFunc, (void *stream, void (*function)(void *), void *argument))                         \
    REQUIRED(int, cuMemcpyHtoDAsync_v2, (uintptr_t to, const void *from, size_t length, void *stream))                \
    REQUIRED(int, cuMemcpyDtoHAsync_v2, (void *to, uintptr_t from, size_t length, void *stream))                      \
    REQUIRED(int, cuMemcpyDtoDAsync_v2, (uintptr_t to, uintptr_t from, size_t length, void *stream))                  \
    OPTIONAL(int, cuDeviceCanAccessPeer, (int *out, int device, int peer))                                            \
    OPTIONAL(int, cuCtxEnablePeerAccess, (void *peer, unsigned int flags))                                            \
    OPTIONAL(int, cuMemcpyPeerAsync,                                                                                  \
             (uintptr_t to, void *to_context, uintptr_t from, void *from_context, size_t length, void *stream))       \
    REQUIRED(int, cuModuleLoadData, (void **out, const void *image))                                                  \
    REQUIRED(int, cuModuleGetFunction, (void **out, void *module, const char *name))                                  \
    REQUIRED(int, cuModuleUnload, (void *module))                                                                     \
    REQUIRED(int, cuLaunchKernel,                                                                                     \
             (void *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,    \
              unsigned int block_y, unsigned int block_z, unsigned int shared, void *stream, void **parameters,       \
              void **extra))                                                                                          \
    OPTIONAL(int, cuStreamIsCapturing, (void *stream, int *out))                                                      \
    OPTIONAL(int, cuMemcpyBatchAsync,                                                                                 \
             (uintptr_t *to, uintptr_t *from, size_t *lengths, size_t count,                                          \
              struct cuda_batch_attributes *attributes, size_t *attribute_starts, size_t attribute_count,             \
              size_t *failed, void *stream))                                                                          \
    OPTIONAL(int, cuMemcpyBatchAsync_v2,                                                                              \
             (const uintptr_t *to, const uintptr_t *from, const size_t *lengths, size_t count,                        \
              struct cuda_batch_attributes *attributes, size_t *attribute_starts, size_t attribute_count,             \
              void *stream))                                                                                          \
    REQUIRED(int, cuEventCreate, (void **out, unsigned int flags))                                                    \
    REQUIRED(int, cuEventDestroy_v2, (void *event))                                                                   \
    REQUIRED(int, cuEventRecord, (void *event, void *stream))                                                         \
    REQUIRED(int, cuEventQuery, (void *event))                                                                        \
    OPTIONAL(int, cuEventElapsedTime, (float *milliseconds, void *from, void *to))

/* One library's functions. An optional one that it lacks is NULL. */
struct cuda {
#define CUDA_MEMBER(type, name, parameters) type(*name) parameters;
    CUDA_FUNCTIONS(CUDA_MEMBER, CUDA_MEMBER)
#undef CUDA_MEMBER
};

/* Where a function's address belongs in struct cuda. */
struct cuda_symbol {
    const char *name;
    size_t offset;
    int optional;
};

/* An array of them; the last one has no name. */
extern const struct cuda_symbol *const kvferry_cuda_symbols;

/* One copy: the layout of device.Copy. */
struct cuda_copy {
    uintptr_t to, from;
    uint64_t length; /* bytes */
};

/* The shape of a group of runs, as kernel_strided of kernels.h has it: the layout of device.Strided. */
struct cuda_strided {
    uint64_t length; /* bytes */
    uint32_t counts[4];
    int64_t to_strides[4], from_strides[4];
};

/* Where a group of runs begins: the layout of device.Base. */
struct cuda_base {
    uintptr_t to, from;
};

/* The result of a call, and where it succeeded the number, address or handle that it returned. */
struct cuda_result {
    int code;
    uintptr_t value;
};

/* The result of a list of copies: an error is about the copy with that index. */
struct cuda_progress {
    int code;
    size_t index;
};

/* The result of asking for the time between two events. */
struct cuda_elapsed {
    int code;
    float milliseconds;
};

/* CUDA's answer about an address; zeros for memory that it does not know. */
struct cuda_attributes {
    unsigned int memory_type, managed;
    int device;
};

/* The directions of copies: the values of device.Kind. */
enum cuda_kind { CUDA_HOST_TO_DEVICE, CUDA_DEVICE_TO_HOST, CUDA_WITHIN_DEVICE };

/*
 * The functions, as Go can call them. Device addresses and handles are integers, so that Go does not take them for its
 * own pointers. Thread rules are CUDA's.
 */
int kvferry_cuda_init(const struct cuda *cuda);
struct cuda_result kvferry_cuda_count(const struct cuda *cuda);
struct cuda_result kvferry_cuda_device(const struct cuda *cuda, int ordinal);
struct cuda_result kvferry_cuda_retain(const struct cuda *cuda, int device);
int kvferry_cuda_release(const struct cuda *cuda, int device);
int kvferry_cuda_push(const struct cuda *cuda, uintptr_t context);
int kvferry_cuda_pop(const struct cuda *cuda);
int kvferry_cuda_attributes(const struct cuda *cuda, uintptr_t pointer, struct cuda_attributes *out);
struct cuda_result kvferry_cuda_malloc(const struct cuda *cuda, size_t length);
int kvferry_cuda_free(const struct cuda *cuda, uintptr_t memory);
struct cuda_result kvferry_cuda_malloc_host(const struct cuda *cuda, size_t length);
int kvferry_cuda_free_host(const struct cuda *cuda, uintptr_t memory);

/* A stream that does not wait for those of the application, and lets their kernels go first. */
struct cuda_result kvferry_cuda_create_stream(const struct cuda *cuda);
int kvferry_cuda_destroy_stream(const struct cuda *cuda, uintptr_t stream);
int kvferry_cuda_synchronize_stream(const struct cuda *cuda, uintptr_t stream);
struct cuda_result kvferry_cuda_create_event(const struct cuda *cuda, unsigned int flags);
int kvferry_cuda_destroy_event(const struct cuda *cuda, uintptr_t event);
int kvferry_cuda_record_event(const struct cuda *cuda, uintptr_t event, uintptr_t stream);
int kvferry_cuda_query_event(const struct cuda *cuda, uintptr_t event);

/* Both events are timed ones, and have happened. CUDA_NOT_SUPPORTED where the driver cannot say. */
struct cuda_elapsed kvferry_cuda_elapsed(const struct cuda *cuda, uintptr_t from, uintptr_t to);

/* The context of a stream, and its CUstreamCaptureStatus: CUDA_CAPTURES_NOTHING where the driver cannot say. */
struct cuda_result kvferry_cuda_stream_context(const struct cuda *cuda, uintptr_t stream);
struct cuda_result kvferry_cuda_capture(const struct cuda *cuda, uintptr_t stream);

/* Queues a call of kvferry_cuda_reached with the argument in a stream. */
int kvferry_cuda_call(const struct cuda *cuda, uintptr_t stream, void *argument);

/* Keeps the calls of this thread apart from the captures of others, and undoes that. The first does not nest. */
int kvferry_cuda_relax(const struct cuda *cuda);
int kvferry_cuda_restore(const struct cuda *cuda);

/* The name of an error, and its text: NULL where CUDA does not know it. */
const char *kvferry_cuda_error_name(const struct cuda *cuda, int error);
const char *kvferry_cuda_error_text(const struct cuda *cuda, int error);

/* Queues the copies one by one, up to the first that fails. */
struct cuda_progress kvferry_cuda_copy(const struct cuda *cuda, enum cuda_kind kind, const struct cuda_copy *copies,
                                       size_t count, uintptr_t stream);

/*
 * Queues count copies, at least one, in one call: CUDA_NOT_SUPPORTED where the driver has no such call. index is SIZE_MAX
 * where the error is about none of them, or CUDA does not say.
 */
struct cuda_progress kvferry_cuda_copy_batch(const struct cuda *cuda, uintptr_t *to, uintptr_t *from, size_t *lengths,
                                             size_t count, uintptr_t stream);

/* Whether there are the functions for peers. The others of them are called only then. */
int kvferry_cuda_has_peers(const struct cuda *cuda);

/* Whether a device can access the memory of another: 0 or 1. */
struct cuda_result kvferry_cuda_can_access(const struct cuda *cuda, int device, int peer);

/* Opens the memory of another context to the current one. That stays until a context ends. */
int kvferry_cuda_enable_peer(const struct cuda *cuda, uintptr_t context);

/* kvferry_cuda_copy from memory of one context to that of another, whose stream it is. */
struct cuda_progress kvferry_cuda_copy_peer(const struct cuda *cuda, uintptr_t to_context, uintptr_t from_context,
                                            const struct cuda_copy *copies, size_t count, uintptr_t stream);

/* The kernels of kernels.h: the module of the current context, and its functions. */
enum cuda_kernel { CUDA_KERNEL_LIST, CUDA_KERNEL_STRIDED };
struct cuda_result kvferry_cuda_load_module(const struct cuda *cuda, const char *ptx);
struct cuda_result kvferry_cuda_find_kernel(const struct cuda *cuda, uintptr_t module, enum cuda_kernel kernel);
int kvferry_cuda_unload_module(const struct cuda *cuda, uintptr_t module);

/*
 * Queues kernels that make the copies, in no order, each of at most so many blocks. After an error some of the copies may
 * be queued.
 */
int kvferry_cuda_launch_list(const struct cuda *cuda, uintptr_t function, const struct cuda_copy *copies, size_t count,
                             unsigned blocks, uintptr_t stream);

/* The same for groups of runs; CUDA_INVALID_VALUE where a run is longer than 1 GiB, or a group longer than 32 GiB. */
int kvferry_cuda_launch_strided(const struct cuda *cuda, uintptr_t function, const struct cuda_strided *runs,
                                const struct cuda_base *at, size_t count, unsigned blocks, uintptr_t stream);

/*
 * Checks that kernels of a context can access the device's side of the copies. A kernel that touches memory
 * that is not there breaks the context of the whole application, where a copy is refused. CUDA_NOT_SUPPORTED where
 * memory is of another context, or was freed; index is the copy.
 */
struct cuda_progress kvferry_cuda_check_reach(const struct cuda *cuda, uintptr_t context, enum cuda_kind kind,
                                              const struct cuda_copy *copies, size_t count);

/* The same for both sides of copies between the memory of two contexts. Memory of no context, which each device is given access
 * to by itself, counts as that of another one. */
struct cuda_progress kvferry_cuda_check_peers(const struct cuda *cuda, uintptr_t to_context, uintptr_t from_context,
                                              const struct cuda_copy *copies, size_t count);

#endif
