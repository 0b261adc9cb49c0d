/* Virtual ranges: addresses into which pieces of device memory are mapped, one behind the other or with holes.
 *
 * The bytes of a piece are a file in memory, which is mapped a second time where the simulator looks for the bytes of
 * the range. So a copy across several pieces is one copy. */
#include "virtual.h"

#include "handle.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Device memory that has no address of its own. */
struct piece_of_memory {
    int file, device;
    size_t size;
    size_t mappings;
    bool released; /* the handle is: it goes with its last mapping */
};

/* What is mapped at one of the equal parts of a range. */
struct granule {
    struct piece_of_memory *piece;
    size_t part;  /* which granule of the piece */
    bool allowed; /* its device may access it */
    int users;    /* copies */
};

static size_t pieces, piece_bytes, ranges;

static bool is_whole(size_t size)
{
    return size > 0 && size % SIM_GRANULE == 0;
}

/* Replaces what is mapped at a part of a range's bytes by nothing. Copies on their way go nowhere. */
static bool clear(const struct allocation *range, size_t offset, size_t size, int users)
{
    int access = users > 0 ? PROT_READ | PROT_WRITE : PROT_NONE;

    return mmap(range->bytes + offset, size, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
           MAP_FAILED;
}

/* Maps addresses at which there is nothing, aligned. */
static void *map_nothing(size_t size, size_t alignment)
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
    range->base = (uintptr_t)map_nothing(size, alignment > SIM_GRANULE ? alignment : SIM_GRANULE);
    range->bytes = map_nothing(size, SIM_GRANULE);
    if (range->granules == NULL || range->base == 0 || range->bytes == NULL || !sim_index(range)) {
        free_range(range);
        return sim_fail(SIM_NO_MEMORY, "there are no %zu bytes of addresses", size);
    }
    ranges++;
    *out = (void *)range->base;
    return SIM_OK;
}

/* Finds the range that part of it lies in, and where; the part must be of whole granules. */
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
        if (range->granules[i].piece != NULL) {
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

int sim_create_piece(size_t size, int device, void **out)
{
    struct piece_of_memory *piece;
    int result = sim_check_device(device);

    if (result == SIM_OK && (out == NULL || !is_whole(size))) {
        result = sim_fail(SIM_INVALID, "%zu bytes of memory, not of whole parts of %d", size, SIM_GRANULE);
    }
    if (result != SIM_OK) {
        return result;
    }
    piece = calloc(1, sizeof *piece);
    *out = piece != NULL ? sim_handle(OBJECT_PIECE, piece) : NULL;
    if (*out != NULL) {
        piece->size = size;
        piece->device = device;
        piece->file = (int)syscall(SYS_memfd_create, SIM_NAME, 1u /* closed by exec */);
        if (piece->file >= 0 && ftruncate(piece->file, (off_t)size) == 0) {
            pieces++;
            piece_bytes += size;
            return SIM_OK;
        }
        if (piece->file >= 0) {
            close(piece->file);
        }
        sim_drop_handle(*out);
    }
    free(piece);
    return sim_fail(SIM_NO_MEMORY, "there is no memory, file or handle for %zu bytes", size);
}

static void free_if_unused(struct piece_of_memory *piece)
{
    if (piece->released && piece->mappings == 0) {
        close(piece->file);
        pieces--;
        piece_bytes -= piece->size;
        free(piece);
    }
}

int sim_drop_piece(void *handle)
{
    struct piece_of_memory *piece = sim_object(OBJECT_PIECE, handle);

    if (piece == NULL) {
        return sim_misuse(MISUSE_unknown_handle, SIM_INVALID, "%p is no memory that was created", handle);
    }
    sim_drop_handle(handle);
    piece->released = true;
    free_if_unused(piece);
    return SIM_OK;
}

int sim_map(void *address, size_t size, void *handle)
{
    struct piece_of_memory *piece = sim_object(OBJECT_PIECE, handle);
    size_t first, count, i;
    struct allocation *range = find_range(address, size, &first, &count);

    if (piece == NULL) {
        return sim_misuse(MISUSE_unknown_handle, SIM_INVALID, "%p is no memory that was created", handle);
    }
    if (range == NULL) {
        return SIM_INVALID;
    }
    if (size > piece->size) {
        return sim_fail(SIM_INVALID, "%zu bytes of memory that has %zu", size, piece->size);
    }
    for (i = first; i < first + count; i++) {
        if (range->granules[i].piece != NULL) {
            return sim_fail(SIM_INVALID, "something is mapped in %zu bytes at %p already", size, address);
        }
    }
    if (mmap(range->bytes + first * SIM_GRANULE, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, piece->file,
             0) == MAP_FAILED) {
        return sim_fail(SIM_NO_MEMORY, "%zu bytes cannot be mapped", size);
    }
    for (i = 0; i < count; i++) {
        range->granules[first + i].piece = piece;
        range->granules[first + i].part = i;
    }
    piece->mappings += count;
    return SIM_OK;
}

/* Whether a part begins and ends where mappings do. */
static bool is_of_whole_mappings(const struct allocation *range, size_t first, size_t count)
{
    size_t end = first + count;
    const struct granule *after = end * SIM_GRANULE < range->size ? &range->granules[end] : NULL;

    return range->granules[first].part == 0 && (after == NULL || after->piece == NULL || after->part == 0);
}

static bool is_all_mapped(const struct allocation *range, size_t first, size_t count)
{
    size_t i;

    for (i = first; i < first + count; i++) {
        if (range->granules[i].piece == NULL) {
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
    bool trouble;

    if (range == NULL || !is_all_mapped(range, first, count) || !is_of_whole_mappings(range, first, count)) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "%zu bytes at %p are not what was mapped", size, address);
    }
    trouble = sim_trouble(range->granules[first].piece->device) != SIM_OK; /* where a program cannot wait */
    for (i = first; i < first + count; i++) {
        users += range->granules[i].users;
    }
    if (users > 0 && !trouble) {
        result = sim_misuse(MISUSE_busy_free, SIM_OK, "what is mapped at %p is unmapped while copies use it", address);
    }
    if (!clear(range, first * SIM_GRANULE, size, users)) {
        return sim_fail(SIM_NO_MEMORY, "%zu bytes at %p cannot be unmapped", size, address);
    }
    for (i = first; i < first + count; i++) {
        struct piece_of_memory *piece = range->granules[i].piece;

        range->granules[i].piece = NULL;
        range->granules[i].allowed = false;
        piece->mappings--;
        free_if_unused(piece);
    }
    return result;
}

int sim_allow(void *address, size_t size, int device)
{
    size_t first, count, i;
    struct allocation *range = find_range(address, size, &first, &count);

    if (range == NULL || !is_all_mapped(range, first, count)) {
        return sim_fail(SIM_INVALID, "%zu bytes at %p are not all mapped", size, address);
    }
    for (i = first; i < first + count; i++) {
        range->granules[i].allowed = range->granules[i].allowed || range->granules[i].piece->device == device;
    }
    return SIM_OK;
}

int sim_mapped(const struct allocation *range, size_t offset, size_t size)
{
    size_t i, first = offset / SIM_GRANULE, last = (offset + (size > 0 ? size - 1 : 0)) / SIM_GRANULE;
    int device = range->granules[first].piece != NULL ? range->granules[first].piece->device : -1;

    for (i = first; i <= last; i++) {
        const struct granule *granule = &range->granules[i];

        if (granule->piece == NULL || !granule->allowed || granule->piece->device != device) {
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

void sim_count_virtual(size_t *piece_count, size_t *bytes, size_t *range_count)
{
    *piece_count = pieces;
    *bytes = piece_bytes;
    *range_count = ranges;
}
