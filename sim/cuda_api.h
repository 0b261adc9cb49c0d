/* What the files of CUDA's API share.
 *
 * A CUdeviceptr is declared as a pointer, which is passed in the same way. */
#ifndef SIM_CUDA_API_H
#define SIM_CUDA_API_H

#include "call.h"

#define CUDA_CALLS(CALL)                                                                                           \
    CALL(cuInit) CALL(cuDriverGetVersion) CALL(cuDeviceGetCount) CALL(cuDeviceGet) CALL(cuDeviceGetName)           \
    CALL(cuDeviceTotalMem_v2) CALL(cuDevicePrimaryCtxRetain) CALL(cuDevicePrimaryCtxRelease_v2)                    \
    CALL(cuDevicePrimaryCtxGetState) CALL(cuCtxGetCurrent) CALL(cuCtxSetCurrent) CALL(cuCtxPushCurrent_v2)         \
    CALL(cuCtxPopCurrent_v2) CALL(cuCtxGetDevice) CALL(cuCtxSynchronize) CALL(cuPointerGetAttribute)               \
    CALL(cuThreadExchangeStreamCaptureMode) CALL(cuStreamIsCapturing)                                              \
    CALL(cuPointerGetAttributes) CALL(cuMemAlloc_v2) CALL(cuMemFree_v2) CALL(cuMemAllocManaged)                    \
    CALL(cuMemHostAlloc) CALL(cuMemFreeHost) CALL(cuMemHostRegister_v2) CALL(cuMemHostUnregister)                  \
    CALL(cuMemcpyHtoD_v2) CALL(cuMemcpyDtoH_v2) CALL(cuMemcpyDtoD_v2) CALL(cuMemcpyHtoDAsync_v2)                   \
    CALL(cuMemcpyDtoHAsync_v2) CALL(cuMemcpyDtoDAsync_v2) CALL(cuMemsetD8_v2) CALL(cuMemcpyBatchAsync)             \
    CALL(cuMemcpyBatchAsync_v2) CALL(cuStreamCreate) CALL(cuStreamDestroy_v2) CALL(cuStreamSynchronize)            \
    CALL(cuStreamQuery) CALL(cuStreamWaitEvent) CALL(cuStreamGetCtx) CALL(cuEventCreate) CALL(cuEventDestroy_v2)   \
    CALL(cuEventRecord) CALL(cuEventSynchronize) CALL(cuEventQuery) CALL(cuLaunchHostFunc)                         \
    CALL(cuMemAddressReserve) CALL(cuMemAddressFree) CALL(cuMemCreate) CALL(cuMemRelease) CALL(cuMemMap)           \
    CALL(cuMemUnmap) CALL(cuMemSetAccess) CALL(cuModuleLoadData) CALL(cuModuleGetFunction) CALL(cuModuleUnload)    \
    CALL(cuLaunchKernel) CALL(cuCtxGetStreamPriorityRange) CALL(cuStreamCreateWithPriority)                      \
    CALL(cuEventElapsedTime) CALL(cuDeviceCanAccessPeer) CALL(cuCtxEnablePeerAccess) CALL(cuMemcpyPeerAsync)

#define CUDA_NUMBER_OF(name) CALL_##name,
enum cuda_call { CUDA_CALLS(CUDA_NUMBER_OF) CUDA_CALL_COUNT };

/* CUresult of cuda.h, those that have a name here. */
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_NOT_READY = 600,
};

enum { CUDA_LOCATION_DEVICE = 1 }; /* CUmemLocationType */

struct cuda_location {
    int type, id;
};

/* The handle of a device's primary context; NULL for -1. */
void *cuda_context(int device);

/* The device of a context; -1 where the handle is none, or its device is not retained. */
int cuda_device_of(const void *context);

/* Unloads the modules of a device; returns how many there were. */
size_t cuda_drop_modules(int device);

/* The simulator's handle for a stream: of the two that CUDA has for the default stream, NULL. */
void *cuda_stream(void *stream);

#endif
