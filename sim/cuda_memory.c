/* CUDA's API: memory, pointers' attributes, and virtual ranges. */
#include "cuda_api.h"

#include "virtual.h"

#include <string.h>

enum { TYPE_NONE, TYPE_HOST, TYPE_DEVICE }; /* CUmemorytype */

enum { ACCESS_READ_WRITE = 3 }; /* CUmemAccess_flags */

enum { ALLOCATION_PINNED = 1 }; /* CUmemAllocationType */

/* CUpointer_attribute, those that are answered. */
enum {
    ATTRIBUTE_CONTEXT = 1,
    ATTRIBUTE_MEMORY_TYPE = 2,
    ATTRIBUTE_DEVICE_POINTER = 3,
    ATTRIBUTE_HOST_POINTER = 4,
    ATTRIBUTE_IS_MANAGED = 8,
    ATTRIBUTE_DEVICE_ORDINAL = 9,
    ATTRIBUTE_RANGE_START = 11,
    ATTRIBUTE_RANGE_SIZE = 12,
};

/* CUmemAllocationProp */
struct properties {
    int type, handle_types;
    struct cuda_location location;
    void *windows;
    unsigned char flags[8];
};

/* CUmemAccessDesc */
struct access {
    struct cuda_location location;
    int flags;
};

SIM_EXPORT int cuMemAlloc_v2(void **address, size_t size)
{
    int result = sim_begin(CALL_cuMemAlloc_v2, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_malloc(MEMORY_DEVICE, size, address) : result);
}

SIM_EXPORT int cuMemFree_v2(void *address)
{
    int deferred, result = sim_begin_release(CALL_cuMemFree_v2, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_free(MEMORY_DEVICE, address) : result, deferred);
}

SIM_EXPORT int cuMemAllocManaged(void **address, size_t size, unsigned flags)
{
    int result = sim_begin(CALL_cuMemAllocManaged, NEEDS_DEVICE);

    if (result == SIM_OK && flags != 1 && flags != 2) { /* attached to all devices, or to the host */
        result = sim_fail(SIM_INVALID, "managed memory with flags %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_malloc(MEMORY_MANAGED, size, address) : result);
}

SIM_EXPORT int cuMemHostAlloc(void **address, size_t size, unsigned flags)
{
    int result = sim_begin(CALL_cuMemHostAlloc, NEEDS_DEVICE);

    if (result == SIM_OK && flags > 7) { /* portable, mapped, write-combined: they make no difference here */
        result = sim_fail(SIM_INVALID, "page-locked memory with flags %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_malloc(MEMORY_HOST, size, address) : result);
}

SIM_EXPORT int cuMemFreeHost(void *address)
{
    int deferred, result = sim_begin_release(CALL_cuMemFreeHost, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_free(MEMORY_HOST, address) : result, deferred);
}

SIM_EXPORT int cuMemHostRegister_v2(void *address, size_t size, unsigned flags)
{
    int result = sim_begin(CALL_cuMemHostRegister_v2, NEEDS_DEVICE);

    if (result == SIM_OK && flags > 15) { /* portable, mapped, of a device, read only: they make no difference here */
        result = sim_fail(SIM_INVALID, "memory is to be page-locked with flags %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_register(address, size) : result);
}

SIM_EXPORT int cuMemHostUnregister(void *address)
{
    int deferred, result = sim_begin_release(CALL_cuMemHostUnregister, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_unregister(address) : result, deferred);
}

/* A pointer's attributes; all zero for the program's own memory. */
struct pointer {
    void *context, *device_pointer, *host_pointer, *start;
    size_t size;
    unsigned type, managed;
    int device;
};

static int find_pointer(void *address, struct pointer *info)
{
    struct allocation *owner;
    enum sim_memory memory = sim_locate(address, &owner);
    int device = owner != NULL ? owner->device : -1;

    memset(info, 0, sizeof *info);
    if (memory == MEMORY_FREED) {
        return sim_misuse(MISUSE_use_after_free, SIM_INVALID, "%p is in memory that was freed", address);
    }
    if (memory == MEMORY_VIRTUAL) {
        device = sim_mapped(owner, (uintptr_t)address - owner->base, 1);
    }
    if (device < 0) { /* the program's own memory, or nothing is mapped there */
        return SIM_OK;
    }
    info->device = device;
    info->device_pointer = address;
    info->start = (void *)owner->base;
    info->size = owner->size;
    info->host_pointer = memory == MEMORY_DEVICE || memory == MEMORY_VIRTUAL ? NULL : address;
    info->context = memory == MEMORY_VIRTUAL ? NULL : cuda_context(device); /* virtual memory is of no context */
    info->type = memory == MEMORY_HOST || memory == MEMORY_REGISTERED ? TYPE_HOST : TYPE_DEVICE;
    info->managed = memory == MEMORY_MANAGED;
    return SIM_OK;
}

/* Writes one attribute as the type that it has in cuda.h. */
static int write_attribute(const struct pointer *info, int attribute, void *out)
{
    int result = sim_check_out(out);

    if (result != SIM_OK) {
        return result;
    }
    switch (attribute) {
    case ATTRIBUTE_CONTEXT: memcpy(out, &info->context, sizeof info->context); break;
    case ATTRIBUTE_MEMORY_TYPE: memcpy(out, &info->type, sizeof info->type); break;
    case ATTRIBUTE_DEVICE_POINTER: memcpy(out, &info->device_pointer, sizeof info->device_pointer); break;
    case ATTRIBUTE_HOST_POINTER: memcpy(out, &info->host_pointer, sizeof info->host_pointer); break;
    case ATTRIBUTE_IS_MANAGED: memcpy(out, &info->managed, sizeof info->managed); break;
    case ATTRIBUTE_DEVICE_ORDINAL: memcpy(out, &info->device, sizeof info->device); break;
    case ATTRIBUTE_RANGE_START: memcpy(out, &info->start, sizeof info->start); break;
    case ATTRIBUTE_RANGE_SIZE: memcpy(out, &info->size, sizeof info->size); break;
    default: result = sim_fail(SIM_INVALID, "attribute %d of a pointer is not known here", attribute);
    }
    return result;
}

SIM_EXPORT int cuPointerGetAttribute(void *out, int attribute, void *address)
{
    int result = sim_begin(CALL_cuPointerGetAttribute, NEEDS_INIT);
    struct pointer info;

    if (result == SIM_OK && (result = find_pointer(address, &info)) == SIM_OK && info.type == TYPE_NONE) {
        result = sim_fail(SIM_INVALID, "%p is not CUDA's", address);
    }
    if (result == SIM_OK && attribute == ATTRIBUTE_HOST_POINTER && info.host_pointer == NULL) {
        result = sim_fail(SIM_INVALID, "the host cannot access %p", address);
    }
    return sim_end(result == SIM_OK ? write_attribute(&info, attribute, out) : result);
}

SIM_EXPORT int cuPointerGetAttributes(unsigned count, const int *attributes, void **out, void *address)
{
    int result = sim_begin(CALL_cuPointerGetAttributes, NEEDS_INIT);
    struct pointer info;
    unsigned i;

    if (result == SIM_OK && (result = sim_check_out(attributes)) == SIM_OK &&
        (result = sim_check_out(out)) == SIM_OK) {
        result = find_pointer(address, &info);
    }
    for (i = 0; i < count && result == SIM_OK; i++) {
        result = write_attribute(&info, attributes[i], out[i]);
    }
    return sim_end(result);
}

SIM_EXPORT int cuMemAddressReserve(void **address, size_t size, size_t alignment, void *wished,
                                   unsigned long long flags)
{
    int result = sim_begin(CALL_cuMemAddressReserve, NEEDS_INIT);

    (void)wished; /* a hint, which need not be followed */
    if (result == SIM_OK && flags != 0) {
        result = sim_fail(SIM_INVALID, "flags must be 0, not %llu", flags);
    }
    return sim_end(result == SIM_OK ? sim_reserve(size, alignment, address) : result);
}

SIM_EXPORT int cuMemAddressFree(void *address, size_t size)
{
    int deferred, result = sim_begin_release(CALL_cuMemAddressFree, NEEDS_INIT, &deferred);

    return sim_end_release(result == SIM_OK ? sim_unreserve(address, size) : result, deferred);
}

SIM_EXPORT int cuMemCreate(void **handle, size_t size, const struct properties *properties, unsigned long long flags)
{
    int result = sim_begin(CALL_cuMemCreate, NEEDS_INIT);

    if (result == SIM_OK && (properties == NULL || properties->type != ALLOCATION_PINNED ||
                             properties->location.type != CUDA_LOCATION_DEVICE || flags != 0)) {
        result = sim_fail(SIM_INVALID, "memory is created, but not of a device");
    }
    return sim_end(result == SIM_OK ? sim_create_physical(size, properties->location.id, handle) : result);
}

SIM_EXPORT int cuMemRelease(void *handle)
{
    int deferred, result = sim_begin_release(CALL_cuMemRelease, NEEDS_INIT, &deferred);

    return sim_end_release(result == SIM_OK ? sim_release_physical(handle) : result, deferred);
}

SIM_EXPORT int cuMemMap(void *address, size_t size, size_t offset, void *handle, unsigned long long flags)
{
    int result = sim_begin(CALL_cuMemMap, NEEDS_INIT);

    if (result == SIM_OK && (offset != 0 || flags != 0)) {
        result = sim_fail(SIM_INVALID, "offset and flags must be 0, not %zu and %llu", offset, flags);
    }
    return sim_end(result == SIM_OK ? sim_map(address, size, handle) : result);
}

SIM_EXPORT int cuMemUnmap(void *address, size_t size)
{
    int deferred, result = sim_begin_release(CALL_cuMemUnmap, NEEDS_INIT, &deferred);

    return sim_end_release(result == SIM_OK ? sim_unmap(address, size) : result, deferred);
}

SIM_EXPORT int cuMemSetAccess(void *address, size_t size, const struct access *access, size_t count)
{
    int result = sim_begin(CALL_cuMemSetAccess, NEEDS_INIT);
    size_t i;

    if (result == SIM_OK && (access == NULL || count == 0)) {
        result = sim_fail(SIM_INVALID, "access is given to nobody");
    }
    for (i = 0; i < count && result == SIM_OK; i++) {
        if (access[i].location.type != CUDA_LOCATION_DEVICE || access[i].flags != ACCESS_READ_WRITE) {
            result = sim_fail(SIM_INVALID, "access is given, but not to a device to read and write");
        } else if ((result = sim_check_device(access[i].location.id)) == SIM_OK) {
            result = sim_set_access(address, size, access[i].location.id);
        }
    }
    return sim_end(result);
}
