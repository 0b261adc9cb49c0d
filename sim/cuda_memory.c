/* The CUDA face: memory, what is known of pointers, and virtual ranges. */
#include "cuda_face.h"

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
    int later, result = sim_begin_giving_back(CALL_cuMemFree_v2, NEEDS_DEVICE, &later);

    return sim_end(result == SIM_OK ? sim_given_back(sim_free(MEMORY_DEVICE, address), later) : result);
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
    int later, result = sim_begin_giving_back(CALL_cuMemFreeHost, NEEDS_DEVICE, &later);

    return sim_end(result == SIM_OK ? sim_given_back(sim_free(MEMORY_HOST, address), later) : result);
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
    int later, result = sim_begin_giving_back(CALL_cuMemHostUnregister, NEEDS_DEVICE, &later);

    return sim_end(result == SIM_OK ? sim_given_back(sim_unregister(address), later) : result);
}

/* What is known of a pointer; all zero of the program's own memory. */
struct facts {
    void *context, *device_pointer, *host_pointer;
    unsigned type, managed;
    int device;
};

static int look_at(void *address, struct facts *facts)
{
    struct allocation *owner;
    enum sim_memory memory = sim_locate(address, &owner);
    int device = owner != NULL ? owner->device : -1;

    memset(facts, 0, sizeof *facts);
    if (memory == MEMORY_FREED) {
        return sim_misuse(MISUSE_use_after_free, SIM_INVALID, "%p is in memory that was freed", address);
    }
    if (memory == MEMORY_VIRTUAL) {
        device = sim_mapped(owner, (uintptr_t)address - owner->base, 1);
    }
    if (device < 0) { /* nobody's, or where nothing is mapped */
        return SIM_OK;
    }
    facts->device = device;
    facts->device_pointer = address;
    facts->host_pointer = memory == MEMORY_DEVICE || memory == MEMORY_VIRTUAL ? NULL : address;
    facts->context = memory == MEMORY_VIRTUAL ? NULL : cuda_context(device); /* which belongs to none */
    facts->type = memory == MEMORY_HOST || memory == MEMORY_REGISTERED ? TYPE_HOST : TYPE_DEVICE;
    facts->managed = memory == MEMORY_MANAGED;
    return SIM_OK;
}

/* Writes one attribute as the type that it has in cuda.h. */
static int tell(const struct facts *facts, int attribute, void *out)
{
    int result = sim_check_out(out);

    if (result != SIM_OK) {
        return result;
    }
    switch (attribute) {
    case ATTRIBUTE_CONTEXT: memcpy(out, &facts->context, sizeof facts->context); break;
    case ATTRIBUTE_MEMORY_TYPE: memcpy(out, &facts->type, sizeof facts->type); break;
    case ATTRIBUTE_DEVICE_POINTER: memcpy(out, &facts->device_pointer, sizeof facts->device_pointer); break;
    case ATTRIBUTE_HOST_POINTER: memcpy(out, &facts->host_pointer, sizeof facts->host_pointer); break;
    case ATTRIBUTE_IS_MANAGED: memcpy(out, &facts->managed, sizeof facts->managed); break;
    case ATTRIBUTE_DEVICE_ORDINAL: memcpy(out, &facts->device, sizeof facts->device); break;
    default: result = sim_fail(SIM_INVALID, "attribute %d of a pointer is not known here", attribute);
    }
    return result;
}

SIM_EXPORT int cuPointerGetAttribute(void *out, int attribute, void *address)
{
    int result = sim_begin(CALL_cuPointerGetAttribute, NEEDS_INIT);
    struct facts facts;

    if (result == SIM_OK && (result = look_at(address, &facts)) == SIM_OK && facts.type == TYPE_NONE) {
        result = sim_fail(SIM_INVALID, "%p is not CUDA's", address);
    }
    if (result == SIM_OK && attribute == ATTRIBUTE_HOST_POINTER && facts.host_pointer == NULL) {
        result = sim_fail(SIM_INVALID, "the host cannot access %p", address);
    }
    return sim_end(result == SIM_OK ? tell(&facts, attribute, out) : result);
}

SIM_EXPORT int cuPointerGetAttributes(unsigned count, const int *attributes, void **out, void *address)
{
    int result = sim_begin(CALL_cuPointerGetAttributes, NEEDS_INIT);
    struct facts facts;
    unsigned i;

    if (result == SIM_OK && (result = sim_check_out(attributes)) == SIM_OK &&
        (result = sim_check_out(out)) == SIM_OK) {
        result = look_at(address, &facts);
    }
    for (i = 0; i < count && result == SIM_OK; i++) {
        result = tell(&facts, attributes[i], out[i]);
    }
    return sim_end(result);
}

SIM_EXPORT int cuMemAddressReserve(void **address, size_t size, size_t alignment, void *wished,
                                   unsigned long long flags)
{
    int result = sim_begin(CALL_cuMemAddressReserve, NEEDS_INIT);

    (void)wished; /* it need not be granted */
    if (result == SIM_OK && flags != 0) {
        result = sim_fail(SIM_INVALID, "flags must be 0, not %llu", flags);
    }
    return sim_end(result == SIM_OK ? sim_reserve(size, alignment, address) : result);
}

SIM_EXPORT int cuMemAddressFree(void *address, size_t size)
{
    int later, result = sim_begin_giving_back(CALL_cuMemAddressFree, NEEDS_INIT, &later);

    return sim_end(result == SIM_OK ? sim_given_back(sim_unreserve(address, size), later) : result);
}

SIM_EXPORT int cuMemCreate(void **handle, size_t size, const struct properties *properties, unsigned long long flags)
{
    int result = sim_begin(CALL_cuMemCreate, NEEDS_INIT);

    if (result == SIM_OK && (properties == NULL || properties->type != ALLOCATION_PINNED ||
                             properties->location.type != CUDA_LOCATION_DEVICE || flags != 0)) {
        result = sim_fail(SIM_INVALID, "memory is created, but not of a device");
    }
    return sim_end(result == SIM_OK ? sim_create_piece(size, properties->location.id, handle) : result);
}

SIM_EXPORT int cuMemRelease(void *handle)
{
    int later, result = sim_begin_giving_back(CALL_cuMemRelease, NEEDS_INIT, &later);

    return sim_end(result == SIM_OK ? sim_given_back(sim_drop_piece(handle), later) : result);
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
    int later, result = sim_begin_giving_back(CALL_cuMemUnmap, NEEDS_INIT, &later);

    return sim_end(result == SIM_OK ? sim_given_back(sim_unmap(address, size), later) : result);
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
            result = sim_allow(address, size, access[i].location.id);
        }
    }
    return sim_end(result);
}
