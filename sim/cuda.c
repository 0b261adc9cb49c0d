/* CUDA's driver on simulated devices: the functions of cuda.h for memory, copies, streams and events. This file has
 * errors, devices and contexts; cuda_memory.c, cuda_copy.c, cuda_stream.c and cuda_module.c have the rest.
 *
 * There are no contexts but the primary one of each device. */
#include "cuda_api.h"

#include "event.h"
#include "streams.h"

#include <stdio.h>
#include <string.h>

#ifdef KVFERRY_SIM_OLDER_CUDA
enum { DRIVER_VERSION = 12040 };
#else
enum { DRIVER_VERSION = 13000 };
#endif

enum { CONTEXTS_MAX = 64 }; /* on a thread's stack, below the current one */

#define DEVICE_BYTES ((size_t)80 << 30)

#define NAME_OF(name) #name,
static const char *const names[SIM_CALLS_MAX] = {CUDA_CALLS(NAME_OF)};

static const int codes[SIM_REASONS] = {
    [-SIM_INVALID] = CUDA_ERROR_INVALID_VALUE,
    [-SIM_UNINITIALIZED] = 3,
    [-SIM_REPEATED] = 999,
    [-SIM_NO_SUCH_DEVICE] = 101,
    [-SIM_NO_DEVICE_SET] = 201,
    [-SIM_OTHER_DEVICE] = 400,
    [-SIM_UNALIGNED] = CUDA_ERROR_INVALID_VALUE,
    [-SIM_NO_SUCH_HANDLE] = 400,
    [-SIM_UNSUPPORTED] = 801,
    [-SIM_NO_MEMORY] = 2,
    [-SIM_NO_STREAM] = 2,
    [-SIM_STREAM_FULL] = 2,
    [-SIM_STREAM_TIMEOUT] = 999,
    [-SIM_EVENT_TIMEOUT] = 999,
    [-SIM_LOST] = 46,
    [-SIM_BROKEN] = 999,
    [-SIM_DMA_ERROR] = 700,
    [-SIM_FORKED] = 3,
    [-SIM_NOT_PERMITTED] = 800,
    [-SIM_REGISTERED] = 712,
    [-SIM_UNREGISTERED] = 713,
    [-SIM_OTHER_MEMORY] = CUDA_ERROR_INVALID_VALUE,
    [-SIM_UNTIMED] = 400,
    [-SIM_NOT_READY] = CUDA_ERROR_NOT_READY,
    [-SIM_BAD_PROGRAM] = 218,
    [-SIM_NOT_FOUND] = 500,
    [-SIM_NO_PEER] = 217,
    [-SIM_PEER_ENABLED] = 704,
};

const struct sim_api sim_api = {
    .runtime = "CUDA",
    .prefix = "cu",
    .report_suffix = ".cuda",
    .calls = names,
    .call_count = CUDA_CALL_COUNT,
    .codes = codes,
    .alignment = 1,
    .failures_spread = true,
    .default_stream = true,
};

/* The contexts below a thread's current one. */
static __thread struct {
    struct sim_current contexts[CONTEXTS_MAX];
    int depth;
} stack;

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported between these two devices"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

/* Finds an error by its code. */
static int find_error(int code, size_t *index)
{
    for (*index = 0; *index < sizeof errors / sizeof *errors; *index += 1) {
        if (errors[*index].code == code) {
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT int cuGetErrorName(int code, const char **name)
{
    size_t i;
    int result = name == NULL ? CUDA_ERROR_INVALID_VALUE : find_error(code, &i);

    if (name != NULL) {
        *name = result == CUDA_SUCCESS ? errors[i].name : NULL;
    }
    return result;
}

SIM_EXPORT int cuGetErrorString(int code, const char **text)
{
    size_t i;
    int result = text == NULL ? CUDA_ERROR_INVALID_VALUE : find_error(code, &i);

    if (text != NULL) {
        *text = result == CUDA_SUCCESS ? errors[i].text : NULL;
    }
    return result;
}

SIM_EXPORT int cuInit(unsigned flags)
{
    int result = sim_begin(CALL_cuInit, NEEDS_NOTHING);

    if (result == SIM_OK) {
        result = flags == 0 ? sim_initialize() : sim_fail(SIM_INVALID, "flags must be 0, not %u", flags);
    }
    return sim_end(result);
}

SIM_EXPORT int cuDriverGetVersion(int *version)
{
    int result = sim_begin(CALL_cuDriverGetVersion, NEEDS_NOTHING);

    if (result == SIM_OK && (result = sim_check_out(version)) == SIM_OK) {
        *version = DRIVER_VERSION;
    }
    return sim_end(result);
}

SIM_EXPORT int cuDeviceGetCount(int *count)
{
    int result = sim_begin(CALL_cuDeviceGetCount, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(count)) == SIM_OK) {
        *count = sim.devices;
    }
    return sim_end(result);
}

/* Begins a call that returns something of a device at `out`. */
static int begin_device(enum cuda_call call, const void *out, int device)
{
    int result = sim_begin(call, NEEDS_INIT);

    if (result == SIM_OK) {
        result = sim_check_out(out);
    }
    return result == SIM_OK ? sim_check_device(device) : result;
}

SIM_EXPORT int cuDeviceGet(int *device, int ordinal)
{
    int result = begin_device(CALL_cuDeviceGet, device, ordinal);

    if (result == SIM_OK) {
        *device = ordinal;
    }
    return sim_end(result);
}

SIM_EXPORT int cuDeviceGetName(char *name, int size, int device)
{
    int result = begin_device(CALL_cuDeviceGetName, name, device);

    if (result == SIM_OK && size <= 0) {
        result = sim_fail(SIM_INVALID, "a name in %d bytes", size);
    }
    if (result == SIM_OK) {
        snprintf(name, (size_t)size, SIM_NAME " GPU");
    }
    return sim_end(result);
}

SIM_EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    int result = begin_device(CALL_cuDeviceTotalMem_v2, bytes, device);

    if (result == SIM_OK) {
        *bytes = DEVICE_BYTES;
    }
    return sim_end(result);
}

SIM_EXPORT int cuDevicePrimaryCtxRetain(void **context, int device)
{
    int result = sim_begin(CALL_cuDevicePrimaryCtxRetain, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(context)) == SIM_OK &&
        (result = sim_retain_device(device)) == SIM_OK) {
        *context = cuda_context(device);
    }
    return sim_end(result);
}

/* Destroys all that was made in a context. A program should have done that before. */
static void destroy_context(int device)
{
    size_t left = sim_drop_streams(device) + sim_drop_events(device) + cuda_drop_modules(device) +
                  sim_drop_memory(device);

    while (left-- > 0) {
        sim_misuse(MISUSE_left_behind, SIM_OK, "the context of device %d goes with things in it", device);
    }
}

SIM_EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
    int deferred, result = sim_begin_release(CALL_cuDevicePrimaryCtxRelease_v2, NEEDS_INIT, &deferred);
    bool last = false;

    if (result == SIM_OK) {
        result = sim_release_device(device, &last);
        if (result == SIM_INVALID) { /* the device was not retained */
            result = SIM_NO_DEVICE_SET;
        }
        if (last) {
            destroy_context(device);
        }
    }
    return sim_end_release(result, deferred);
}

SIM_EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{
    int result = begin_device(CALL_cuDevicePrimaryCtxGetState, flags, device);

    if (result == SIM_OK && (result = sim_check_out(active)) == SIM_OK) {
        *flags = 0;
        *active = sim.device[device].retained > 0;
    }
    return sim_end(result);
}

SIM_EXPORT int cuDeviceCanAccessPeer(int *can, int device, int peer)
{
    int result = begin_device(CALL_cuDeviceCanAccessPeer, can, device);

    if (result == SIM_OK && (result = sim_check_device(peer)) == SIM_OK) {
        *can = device != peer && !sim.no_peers;
    }
    return sim_end(result);
}

SIM_EXPORT int cuCtxEnablePeerAccess(void *context, unsigned flags)
{
    int result = sim_begin(CALL_cuCtxEnablePeerAccess, NEEDS_DEVICE), peer = -1;

    if (result == SIM_OK && (peer = cuda_device_of(context)) < 0) {
        result = sim_fail(SIM_NO_DEVICE_SET, "%p is no context, or one that has gone", context);
    }
    if (result == SIM_OK) {
        result = flags == 0 ? sim_enable_peer(peer) : sim_fail(SIM_INVALID, "flags must be 0, not %u", flags);
    }
    return sim_end(result);
}

SIM_EXPORT int cuCtxGetCurrent(void **context)
{
    int result = sim_begin(CALL_cuCtxGetCurrent, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(context)) == SIM_OK) {
        *context = cuda_context(sim_current());
    }
    return sim_end(result);
}

/* Puts a context on top of this thread's stack. */
static int push(int device)
{
    if (device < 0) {
        return sim_fail(SIM_NO_DEVICE_SET, "no context, or one that has gone, is to be made current");
    }
    if (stack.depth == CONTEXTS_MAX) {
        return sim_fail(SIM_NO_MEMORY, "a stack of %d contexts", CONTEXTS_MAX);
    }
    stack.contexts[stack.depth++] = sim_get_current();
    sim_set_current(sim_current_for(device));
    return SIM_OK;
}

/* Makes the context below the current one current; at the bottom of the stack there is none. */
static void pop(void)
{
    if (stack.depth > 0) {
        sim_set_current(stack.contexts[--stack.depth]);
    }
}

SIM_EXPORT int cuCtxSetCurrent(void *context)
{
    int result = sim_begin(CALL_cuCtxSetCurrent, NEEDS_INIT), device;

    if (result == SIM_OK) {
        device = cuda_device_of(context);
        if (context != NULL && device < 0) {
            result = sim_fail(SIM_NO_DEVICE_SET, "%p is no context, or one that has gone", context);
        } else {
            pop();
            result = context != NULL ? push(device) : SIM_OK;
        }
    }
    return sim_end(result);
}

SIM_EXPORT int cuCtxPushCurrent_v2(void *context)
{
    int result = sim_begin(CALL_cuCtxPushCurrent_v2, NEEDS_INIT);

    return sim_end(result == SIM_OK ? push(cuda_device_of(context)) : result);
}

SIM_EXPORT int cuCtxPopCurrent_v2(void **context)
{
    int result = sim_begin(CALL_cuCtxPopCurrent_v2, NEEDS_INIT);

    if (result == SIM_OK && stack.depth == 0) {
        result = sim_fail(SIM_NO_DEVICE_SET, "there is no context to be popped");
    }
    if (result == SIM_OK) {
        if (context != NULL) {
            *context = cuda_context(sim_current());
        }
        pop();
    }
    return sim_end(result);
}

SIM_EXPORT int cuCtxGetDevice(int *device)
{
    int result = sim_begin(CALL_cuCtxGetDevice, NEEDS_INIT);

    if (result == SIM_OK && (result = sim_check_out(device)) == SIM_OK) {
        *device = sim_current();
        result = *device >= 0 ? SIM_OK : sim_fail(SIM_NO_DEVICE_SET, "cuCtxGetDevice on a thread with no context");
    }
    return sim_end(result);
}

SIM_EXPORT int cuCtxSynchronize(void)
{
    int result = sim_begin(CALL_cuCtxSynchronize, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_synchronize_device(STREAMS_ALL) : result);
}
