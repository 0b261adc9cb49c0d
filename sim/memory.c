/* Memory of the devices, and page-locked memory of the host.
 *
 * The index has all allocations in the order of their addresses; virtual.c adds its ranges.
 *
 * The address of device memory is a range without access rights. Its bytes are mapped elsewhere, for the simulator
 * alone. The kernel makes a page when it is touched, so that many GiB can be allocated. Freed memory stays a range
 * without access rights for a while, so that its use is recognised. */
#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* How much freed memory is remembered. */
#define FREED_MAX 1024
#define FREED_BYTES_MAX ((size_t)1 << 40)

#define HUGE_PAGE ((size_t)2 << 20)

/* All memory, freed memory too, in the order of the addresses. */
static struct allocation **index_;
static size_t indexed, index_room;

/* Freed memory that nothing uses any more, the oldest first. */
static struct allocation *freed[FREED_MAX];
static size_t freed_first, freed_count, freed_bytes;

/* Fewer and larger pages make the copies cheaper, as they do on a device and in memory that a driver locks. */
static void *map(size_t size, int access)
{
    void *address = mmap(NULL, size, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (address == MAP_FAILED) {
        return NULL;
    }
    if (access != PROT_NONE && size >= HUGE_PAGE) {
        madvise(address, size, MADV_HUGEPAGE); /* a hint: small pages serve, too */
    }
    return address;
}

/* The number of indexed allocations that begin at or below an address. */
static size_t rank(uintptr_t address)
{
    size_t low = 0, high = indexed;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (index_[middle]->base <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool sim_index(struct allocation *allocation)
{
    size_t at = rank(allocation->base);

    if (indexed == index_room) {
        size_t room = index_room == 0 ? 64 : 2 * index_room;
        struct allocation **larger = realloc(index_, room * sizeof *larger);

        if (larger == NULL) {
            return false;
        }
        index_ = larger;
        index_room = room;
    }
    memmove(index_ + at + 1, index_ + at, (indexed - at) * sizeof *index_);
    index_[at] = allocation;
    indexed++;
    return true;
}

void sim_unindex(struct allocation *allocation)
{
    size_t at = rank(allocation->base);

    memmove(index_ + at - 1, index_ + at, (indexed - at) * sizeof *index_);
    indexed--;
}

/* Forgets freed memory: its addresses may be handed out again. */
static void forget_oldest(void)
{
    struct allocation *oldest = freed[freed_first];

    sim_unindex(oldest);
    freed_first = (freed_first + 1) % FREED_MAX;
    freed_count--;
    freed_bytes -= oldest->span;
    munmap((void *)oldest->base, oldest->span);
    free(oldest);
}

/* Frees the pages, and keeps the range. Registered memory is left to the program. */
static void discard(struct allocation *allocation)
{
    if (allocation->memory == MEMORY_REGISTERED) {
        sim_unindex(allocation);
        free(allocation);
        return;
    }
    if (allocation->memory == MEMORY_DEVICE) {
        munmap(allocation->bytes, allocation->span);
    } else {
        mmap((void *)allocation->base, allocation->span, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    }
    if (freed_count == FREED_MAX) {
        forget_oldest();
    }
    freed[(freed_first + freed_count++) % FREED_MAX] = allocation;
    freed_bytes += allocation->span;
    while (freed_bytes > FREED_BYTES_MAX && freed_count > 1) {
        forget_oldest();
    }
}

/* Maps an allocation's address and bytes. */
static bool map_allocation(struct allocation *allocation)
{
    bool device = allocation->memory == MEMORY_DEVICE;
    void *base = map(allocation->span, device ? PROT_NONE : PROT_READ | PROT_WRITE);

    allocation->base = (uintptr_t)base;
    allocation->bytes = base;
    if (base != NULL && device) {
        allocation->bytes = map(allocation->span, PROT_READ | PROT_WRITE);
    }
    if (allocation->bytes != NULL && sim_index(allocation)) {
        return true;
    }
    if (base != NULL) {
        munmap(base, allocation->span);
    }
    if (device && allocation->bytes != NULL) {
        munmap(allocation->bytes, allocation->span);
    }
    return false;
}

int sim_malloc(enum sim_memory memory, size_t size, void **out)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct allocation *allocation;

    if (out == NULL || size == 0) {
        return sim_fail(SIM_INVALID, "an allocation of %zu bytes, to be returned at %p", size, (void *)out);
    }
    allocation = calloc(1, sizeof *allocation);
    if (allocation != NULL && size <= SIZE_MAX / 2) {
        allocation->memory = memory;
        allocation->device = sim_current();
        allocation->size = size;
        allocation->span = (size + page - 1) / page * page;
        if (map_allocation(allocation)) {
            *out = (void *)allocation->base;
            return SIM_OK;
        }
    }
    free(allocation);
    return sim_fail(SIM_NO_MEMORY, "there is no memory for an allocation of %zu bytes", size);
}

static struct allocation *find(const void *address)
{
    size_t at = rank((uintptr_t)address);
    struct allocation *below = at > 0 ? index_[at - 1] : NULL;

    return below != NULL && (uintptr_t)address - below->base < below->span ? below : NULL;
}

enum sim_memory sim_locate(const void *address, struct allocation **out)
{
    struct allocation *allocation = find(address);

    *out = allocation;
    if (allocation == NULL) {
        return MEMORY_UNKNOWN;
    }
    return allocation->freed ? MEMORY_FREED : allocation->memory;
}

/* Frees memory. *busy tells whether copies use it: then it is freed when they end. */
static void free_now(struct allocation *allocation, bool *busy)
{
    *busy = allocation->users > 0;
    allocation->freed = true;
    if (!*busy) {
        discard(allocation);
    }
}

/* Frees memory for the program, which should have waited for the copies; on a lost or broken device it cannot. */
static int free_checked(struct allocation *allocation)
{
    bool failed = sim_device_error(allocation->device) != SIM_OK, busy;
    void *address = (void *)allocation->base;
    int users = allocation->users;

    free_now(allocation, &busy);
    if (!busy || failed) {
        return SIM_OK;
    }
    return sim_misuse(MISUSE_busy_free, SIM_OK, "%p was freed while %d copies use it", address, users);
}

int sim_free(enum sim_memory memory, void *address)
{
    struct allocation *allocation;
    enum sim_memory found = sim_locate(address, &allocation);
    bool whole = allocation != NULL && allocation->base == (uintptr_t)address;

    if (found == MEMORY_FREED && whole) {
        return sim_misuse(MISUSE_double_free, SIM_INVALID, "%p is freed already", address);
    }
    if (!whole || (found != memory && !(found == MEMORY_MANAGED && memory == MEMORY_DEVICE))) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "%p is no allocation of %s memory", address,
                          memory == MEMORY_DEVICE ? "device" : "page-locked host");
    }
    if (memory == MEMORY_DEVICE && allocation->device != sim_current()) {
        return sim_misuse(MISUSE_other_device, SIM_OTHER_MEMORY, "%p is memory of device %d, and device %d is set",
                          address, allocation->device, sim_current());
    }
    return free_checked(allocation);
}

/* Whether any of a range is an allocation already. */
static bool overlaps(uintptr_t base, size_t size)
{
    size_t at = rank(base + size - 1);

    return at > 0 && index_[at - 1]->base + index_[at - 1]->span > base;
}

/* Whether the program has all of a range mapped. */
static bool is_mapped(uintptr_t base, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (base % page + size + page - 1) / page;
    unsigned char *resident = malloc(pages);
    bool mapped = resident != NULL && mincore((void *)(base / page * page), pages * page, resident) == 0;

    free(resident);
    return mapped;
}

int sim_register(void *address, size_t size)
{
    uintptr_t base = (uintptr_t)address;
    struct allocation *allocation;

    if (size == 0 || base + size < base || !is_mapped(base, size)) {
        return sim_fail(SIM_INVALID, "there are no %zu bytes at %p to be page-locked", size, address);
    }
    if (overlaps(base, size)) {
        return sim_fail(SIM_REGISTERED, "some of %zu bytes at %p is page-locked, or a device's, already", size,
                        address);
    }
    allocation = calloc(1, sizeof *allocation);
    if (allocation != NULL) {
        allocation->memory = MEMORY_REGISTERED;
        allocation->device = sim_current();
        allocation->base = base;
        allocation->bytes = address;
        allocation->size = allocation->span = size;
        if (sim_index(allocation)) {
            return SIM_OK;
        }
    }
    free(allocation);
    return sim_fail(SIM_NO_MEMORY, "there is no memory to page-lock %zu bytes", size);
}

int sim_unregister(void *address)
{
    struct allocation *allocation;

    if (sim_locate(address, &allocation) != MEMORY_REGISTERED || allocation->base != (uintptr_t)address) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_UNREGISTERED, "%p was not page-locked by registering it", address);
    }
    return free_checked(allocation);
}

size_t sim_drop_memory(int device)
{
    size_t dropped = 0, i = 0;
    bool busy;

    while (i < indexed) {
        if (index_[i]->freed || index_[i]->device != device) {
            i++;
            continue;
        }
        free_now(index_[i], &busy);
        dropped++;
        i = 0; /* freeing may have changed the index */
    }
    return dropped;
}

void sim_end_use(struct allocation *allocation)
{
    if (allocation != NULL && --allocation->users == 0 && allocation->freed) {
        discard(allocation);
    }
}

void sim_count_memory(const enum sim_memory *kinds, size_t n, size_t *allocations, size_t *bytes)
{
    size_t i, kind;

    for (i = 0; i < indexed; i++) {
        for (kind = 0; kind < n; kind++) {
            if (index_[i]->memory == kinds[kind] && !index_[i]->freed) {
                *allocations += 1;
                *bytes += index_[i]->size;
            }
        }
    }
}
