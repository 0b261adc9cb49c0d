/* Virtual ranges: addresses into which physical allocations are mapped, one behind the other or with holes.
 *
 * The bytes of a physical allocation are a file in memory. The simulator maps it at a second range of addresses, where
 * it finds the bytes of the virtual range one behind the other: a copy across several allocations is one copy. */
#include "virtual.h"

#include "handle.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A physical allocation: device memory without an address of its own. */
struct physical {
    int file, device;
    size_t size;
    size_t mappings;
    bool released; /* it is freed with its last mapping */
};

/* One of the equal parts of a range, and the memory that is mapped there. */
struct granule {
    struct physical *physical;
    size_t part;  /* which part of the physical allocation */
    bool allowed; /* its device may access it */
    int users;    /* copies */
};

static size_t allocations, allocated_bytes, ranges;

static bool is_whole(size_t size)
{
    return size > 0 && size % SIM_GRANULE == 0;
}

/* Unmaps a part of a range's bytes. Copies that use it move bytes from or to scratch memory then. */
static bool unmap_bytes(const struct allocation *range, size_t offset, size_t size, int users)
{
    int access = users > 0 ? PROT_READ | PROT_WRITE : PROT_NONE;

    return mmap(range->bytes + offset, size, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
           MAP_FAILED;
}

/* Reserves aligned addresses without access rights. */
static void *reserve_addresses(size_t size, size_t alignment)
{
    char *address = mmap(NULL, size + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t before;

    if ((void *)address == MAP_FAILED) {
        return NULL;
    }
    before = (alignment - (uintptr_t)address % alignment) % alignment;
    if (before > 0) {
        munmap(address, before);
    }
    munmap(address + before + size, alignment - before);
    return address + before;
}

static void free_range(struct allocation *range)
{
    if (range->base != 0) {
        munmap((void *)range->base, range->span);
    }
    if (range->bytes != NULL) {
        munmap(range->bytes, range->span);
    }
    free(range->granules);
    free(range);
}

int sim_reserve(size_t size, size_t alignment, void **out)
{
    struct allocation *range;

    if (out == NULL || !is_whole(size) || (alignment & (alignment - 1)) != 0 || size > SIZE_MAX / 4) {
        return sim_fail(SIM_INVALID, "a range of %zu bytes aligned to %zu, not of whole parts of %d", size, alignment,
                        SIM_GRANULE);
    }
    range = calloc(1, sizeof *range);
    if (range == NULL) {
        return sim_fail(SIM_NO_MEMORY, "there is no memory for a range");
    }
    range->memory = MEMORY_VIRTUAL;
    range->device = -1;
    range->size = range->span = size;
    range->granules = calloc(size / SIM_GRANULE, sizeof *range->granules);
    range->base = (uintptr_t)reserve_addresses(size, alignment > SIM_GRANULE ? alignment : SIM_GRANULE);
    range->bytes = reserve_addresses(size, SIM_GRANULE);
    if (range->granules == NULL || range->base == 0 || range->bytes == NULL || !sim_index(range)) {
        free_range(range);
        return sim_fail(SIM_NO_MEMORY, "there are no %zu bytes of addresses", size);
    }
    ranges++;
    *out = (void *)range->base;
    return SIM_OK;
}

/* Finds the range that a part lies in, and its granules, of which the part must be a whole number. */
static struct allocation *find_range(void *address, size_t size, size_t *first, size_t *count)
{
    struct allocation *range;
    size_t offset;

    if (sim_locate(address, &range) != MEMORY_VIRTUAL || !is_whole(size)) {
        sim_fail(SIM_INVALID, "%zu bytes at %p are no part of a reserved range", size, address);
        return NULL;
    }
    offset = (uintptr_t)address - range->base;
    if (offset % SIM_GRANULE != 0 || size > range->size - offset) {
        sim_fail(SIM_INVALID, "%zu bytes at %p are no whole part of the range at %p", size, address,
                 (void *)range->base);
        return NULL;
    }
    *first = offset / SIM_GRANULE;
    *count = size / SIM_GRANULE;
    return range;
}

int sim_unreserve(void *address, size_t size)
{
    size_t first, count, i;
    struct allocation *range = find_range(address, size, &first, &count);

    if (range == NULL || range->base != (uintptr_t)address || range->size != size) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "%zu bytes at %p are no reserved range", size, address);
    }
    for (i = 0; i < count; i++) {
        if (range->granules[i].physical != NULL) {
            return sim_fail(SIM_INVALID, "something is still mapped in the range at %p", address);
        }
    }
    if (range->users > 0) {
        return sim_misuse(MISUSE_busy_free, SIM_INVALID, "%d copies use the range at %p", range->users, address);
    }
    sim_unindex(range);
    free_range(range);
    ranges--;
    return SIM_OK;
}

int sim_create_physical(size_t size, int device, void **out)
{
    struct physical *physical;
    int result = sim_check_device(device);

    if (result == SIM_OK && (out == NULL || !is_whole(size))) {
        result = sim_fail(SIM_INVALID, "%zu bytes of memory, not of whole parts of %d", size, SIM_GRANULE);
    }
    if (result != SIM_OK) {
        return result;
    }
    physical = calloc(1, sizeof *physical);
    *out = physical != NULL ? sim_handle(OBJECT_PHYSICAL, physical) : NULL;
    if (*out != NULL) {
        physical->size = size;
        physical->device = device;
        physical->file = (int)syscall(SYS_memfd_create, SIM_NAME, 1u /* closed by exec */);
        if (physical->file >= 0 && ftruncate(physical->file, (off_t)size) == 0) {
            allocations++;
            allocated_bytes += size;
            return SIM_OK;
        }
        if (physical->file >= 0) {
            close(physical->file);
        }
        sim_drop_handle(*out);
    }
    free(physical);
    return sim_fail(SIM_NO_MEMORY, "there is no memory, file or handle for %zu bytes", size);
}

static void free_if_unused(struct physical *physical)
{
    if (physical->released && physical->mappings == 0) {
        close(physical->file);
        allocations--;
        allocated_bytes -= physical->size;
        free(physical);
    }
}

int sim_release_physical(void *handle)
{
    struct physical *physical = sim_object(OBJECT_PHYSICAL, handle);

    if (physical == NULL) {
        return sim_misuse(MISUSE_unknown_handle, SIM_INVALID, "%p is no memory that was created", handle);
    }
    sim_drop_handle(handle);
    physical->released = true;
    free_if_unused(physical);
    return SIM_OK;
}

int sim_map(void *address, size_t size, void *handle)
{
    struct physical *physical = sim_object(OBJECT_PHYSICAL, handle);
    size_t first, count, i;
    struct allocation *range = find_range(address, size, &first, &count);

    if (physical == NULL) {
        return sim_misuse(MISUSE_unknown_handle, SIM_INVALID, "%p is no memory that was created", handle);
    }
    if (range == NULL) {
        return SIM_INVALID;
    }
    if (size > physical->size) {
        return sim_fail(SIM_INVALID, "%zu bytes of memory that has %zu", size, physical->size);
    }
    for (i = first; i < first + count; i++) {
        if (range->granules[i].physical != NULL) {
            return sim_fail(SIM_INVALID, "something is mapped in %zu bytes at %p already", size, address);
        }
    }
    if (mmap(range->bytes + first * SIM_GRANULE, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, physical->file,
             0) == MAP_FAILED) {
        return sim_fail(SIM_NO_MEMORY, "%zu bytes cannot be mapped", size);
    }
    for (i = 0; i < count; i++) {
        range->granules[first + i].physical = physical;
        range->granules[first + i].part = i;
    }
    physical->mappings += count;
    return SIM_OK;
}

/* Whether a part begins and ends at ends of mappings. */
static bool is_of_whole_mappings(const struct allocation *range, size_t first, size_t count)
{
    size_t end = first + count;
    const struct granule *after = end * SIM_GRANULE < range->size ? &range->granules[end] : NULL;

    return range->granules[first].part == 0 && (after == NULL || after->physical == NULL || after->part == 0);
}

static bool is_all_mapped(const struct allocation *range, size_t first, size_t count)
{
    size_t i;

    for (i = first; i < first + count; i++) {
        if (range->granules[i].physical == NULL) {
            return false;
        }
    }
    return true;
}

int sim_unmap(void *address, size_t size)
{
    size_t first, count, i;
    struct allocation *range = find_range(address, size, &first, &count);
    int users = 0, result = SIM_OK;
    bool failed;

    if (range == NULL || !is_all_mapped(range, first, count) || !is_of_whole_mappings(range, first, count)) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "%zu bytes at %p are not what was mapped", size, address);
    }
    failed = sim_device_error(range->granules[first].physical->device) != SIM_OK; /* a program cannot wait then */
    for (i = first; i < first + count; i++) {
        users += range->granules[i].users;
    }
    if (users > 0 && !failed) {
        result = sim_misuse(MISUSE_busy_free, SIM_OK, "what is mapped at %p is unmapped while copies use it", address);
    }
    if (!unmap_bytes(range, first * SIM_GRANULE, size, users)) {
        return sim_fail(SIM_NO_MEMORY, "%zu bytes at %p cannot be unmapped", size, address);
    }
    for (i = first; i < first + count; i++) {
        struct physical *physical = range->granules[i].physical;

        range->granules[i].physical = NULL;
        range->granules[i].allowed = false;
        physical->mappings--;
        free_if_unused(physical);
    }
    return result;
}

int sim_set_access(void *address, size_t size, int device)
{
    size_t first, count, i;
    struct allocation *range = find_range(address, size, &first, &count);

    if (range == NULL || !is_all_mapped(range, first, count)) {
        return sim_fail(SIM_INVALID, "%zu bytes at %p are not all mapped", size, address);
    }
    for (i = first; i < first + count; i++) {
        range->granules[i].allowed = range->granules[i].allowed || range->granules[i].physical->device == device;
    }
    return SIM_OK;
}

int sim_mapped(const struct allocation *range, size_t offset, size_t size)
{
    size_t i, first = offset / SIM_GRANULE, last = (offset + (size > 0 ? size - 1 : 0)) / SIM_GRANULE;
    int device = range->granules[first].physical != NULL ? range->granules[first].physical->device : -1;

    for (i = first; i <= last; i++) {
        const struct granule *granule = &range->granules[i];

        if (granule->physical == NULL || !granule->allowed || granule->physical->device != device) {
            return -1;
        }
    }
    return device;
}

void sim_use_virtual(struct allocation *range, size_t offset, size_t size, int change)
{
    size_t i;

    for (i = offset / SIM_GRANULE; i <= (offset + size - 1) / SIM_GRANULE; i++) {
        range->granules[i].users += change;
    }
}

void sim_count_virtual(size_t *count, size_t *bytes, size_t *range_count)
{
    *count = allocations;
    *bytes = allocated_bytes;
    *range_count = ranges;
}
