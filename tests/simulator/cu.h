/* What the programs that test the simulator's CUDA share. */
#ifndef CU_H
#define CU_H

#include "check.h"

enum {
    INVALID = 1,
    NO_MEMORY = 2,
    NOT_INITIALIZED = 3,
    UNAVAILABLE = 46,
    NO_DEVICE = 100,
    NO_SUCH_DEVICE = 101,
    NO_CONTEXT = 201,
    NO_PEER = 217,
    INVALID_PTX = 218,
    NO_SUCH_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    PEER_ENABLED = 704,
    REGISTERED = 712,
    UNREGISTERED = 713,
    LAUNCH_FAILED = 719,
    NOT_PERMITTED = 800,
    UNSUPPORTED = 801,
    UNKNOWN = 999
};

enum { NON_BLOCKING = 1 };                           /* streams */
enum { IN_STREAM = 1, DURING_CALL = 2, AT_ANY_TIME = 3 }; /* when the source of a batch is read */

typedef unsigned long long CUdeviceptr;

struct location {
    int type, id;
};

struct attributes {
    int order;
    struct location from, to;
    unsigned flags;
};

struct properties {
    int type, handle_types;
    struct location location;
    void *windows;
    unsigned char flags[8];
};

struct access {
    struct location location;
    int flags;
};

int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);
int cuGetErrorName(int code, const char **name);
int cuGetErrorString(int code, const char **text);
int cuDeviceGetCount(int *count);
int cuDeviceGet(int *device, int ordinal);
int cuDeviceGetName(char *name, int size, int device);
int cuDeviceTotalMem_v2(size_t *bytes, int device);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active);
int cuDeviceCanAccessPeer(int *can, int device, int peer);
int cuCtxEnablePeerAccess(void *context, unsigned flags);
int cuCtxGetCurrent(void **context);
int cuCtxSetCurrent(void *context);
int cuCtxPushCurrent_v2(void *context);
int cuCtxPopCurrent_v2(void **context);
int cuCtxGetDevice(int *device);
int cuCtxSynchronize(void);
int cuPointerGetAttribute(void *out, int attribute, CUdeviceptr address);
int cuPointerGetAttributes(unsigned count, const int *attributes, void **out, CUdeviceptr address);
int cuMemAlloc_v2(CUdeviceptr *address, size_t size);
int cuMemFree_v2(CUdeviceptr address);
int cuMemAllocManaged(CUdeviceptr *address, size_t size, unsigned flags);
int cuMemHostAlloc(void **address, size_t size, unsigned flags);
int cuMemFreeHost(void *address);
int cuMemHostRegister_v2(void *address, size_t size, unsigned flags);
int cuMemHostUnregister(void *address);
int cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size);
int cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size);
int cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t size);
int cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, void *stream);
int cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, void *stream);
int cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, void *stream);
int cuMemcpyPeerAsync(CUdeviceptr to, void *to_context, CUdeviceptr from, void *from_context, size_t size,
                      void *stream);
int cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t size);
int cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count, struct attributes *attributes,
                       size_t *indexes, size_t attribute_count, size_t *failed, void *stream);
int cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                          struct attributes *attributes, size_t *indexes, size_t attribute_count, void *stream);
int cuStreamCreate(void **stream, unsigned flags);
int cuStreamDestroy_v2(void *stream);
int cuStreamSynchronize(void *stream);
int cuStreamQuery(void *stream);
int cuStreamWaitEvent(void *stream, void *event, unsigned flags);
int cuStreamGetCtx(void *stream, void **context);
int cuEventCreate(void **event, unsigned flags);
int cuEventDestroy_v2(void *event);
int cuEventRecord(void *event, void *stream);
int cuEventSynchronize(void *event);
int cuEventQuery(void *event);
int cuEventElapsedTime(float *milliseconds, void *from, void *to);
int cuThreadExchangeStreamCaptureMode(int *mode);
int cuStreamIsCapturing(void *stream, int *out);
int cuCtxGetStreamPriorityRange(int *least, int *greatest);
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority);
int cuModuleLoadData(void **module, const void *image);
int cuModuleGetFunction(void **function, void *module, const char *name);
int cuModuleUnload(void *module);
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra);
int cuLaunchHostFunc(void *stream, void (*function)(void *), void *argument);
int cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment, CUdeviceptr wished,
                        unsigned long long flags);
int cuMemAddressFree(CUdeviceptr address, size_t size);
int cuMemCreate(unsigned long long *handle, size_t size, const struct properties *properties,
                unsigned long long flags);
int cuMemRelease(unsigned long long handle);
int cuMemMap(CUdeviceptr address, size_t size, size_t offset, unsigned long long handle, unsigned long long flags);
int cuMemUnmap(CUdeviceptr address, size_t size);
int cuMemSetAccess(CUdeviceptr address, size_t size, const struct access *access, size_t count);

/* Retains a device's context, and makes it this thread's. */
static inline void *begin(int device)
{
    void *context;

    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, device));
    OK(cuCtxSetCurrent(context));
    return context;
}

static inline CUdeviceptr device_memory(size_t size)
{
    CUdeviceptr address;

    OK(cuMemAlloc_v2(&address, size));
    return address;
}

static inline unsigned char *pinned_memory(size_t size)
{
    void *address;

    OK(cuMemHostAlloc(&address, size, 0));
    return address;
}

static inline void *new_stream(unsigned flags)
{
    void *stream;

    OK(cuStreamCreate(&stream, flags));
    return stream;
}

static inline void *new_event(void)
{
    void *event;

    OK(cuEventCreate(&event, 2)); /* without times */
    return event;
}

#endif
