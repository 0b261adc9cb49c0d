/* Copies: checking one, and moving its bytes. */
#include "copy.h"

#include "clock.h"
#include "cost.h"
#include "virtual.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *const kind_names[KINDS] = {"host to host", "host to device", "device to host", "device to device"};

/* One end of a copy. */
struct end {
    unsigned char *bytes;
    struct allocation *owner; /* NULL for pageable memory */
    int device;               /* -1 for the host's */
    bool shared;              /* the host can access it as well as a device */
};

/* Finds the bytes of one end. */
static int find_end(const void *address, size_t size, struct end *end)
{
    enum sim_memory memory = sim_locate(address, &end->owner);
    size_t offset;

    if (address == NULL) {
        return sim_fail(SIM_INVALID, "one end of a copy is NULL");
    }
    end->bytes = (unsigned char *)address;
    end->device = -1;
    end->shared = memory == MEMORY_MANAGED;
    if (memory == MEMORY_UNKNOWN) {
        return SIM_OK;
    }
    if (memory == MEMORY_FREED) {
        return sim_misuse(MISUSE_use_after_free, SIM_INVALID, "%p is in memory that was freed", address);
    }
    offset = (uintptr_t)address - end->owner->base;
    if (offset > end->owner->size || size > end->owner->size - offset) {
        return sim_misuse(MISUSE_out_of_bounds, SIM_INVALID, "%zu bytes at %p end behind the %zu bytes allocated at %p",
                          size, address, end->owner->size, (void *)end->owner->base);
    }
    end->bytes = end->owner->bytes + offset;
    if (memory == MEMORY_DEVICE || memory == MEMORY_MANAGED) {
        end->device = end->owner->device;
    } else if (memory == MEMORY_VIRTUAL && (end->device = sim_mapped(end->owner, offset, size)) < 0) {
        return sim_misuse(MISUSE_out_of_bounds, SIM_INVALID,
                          "%zu bytes at %p are not all mapped, of one device, and open to it", size, address);
    }
    return SIM_OK;
}

/* Checks that a device may use memory in a copy: its own, or that of a peer where both ends are on devices. */
static int check_owner(const struct end *end, int device, bool by_host, enum sim_kind kind)
{
    if (end->device < 0 || end->device == device) {
        return SIM_OK;
    }
    if (kind == KIND_D2D && (by_host || sim_is_peer(device, end->device))) {
        return sim_device_error(end->device);
    }
    return sim_misuse(MISUSE_other_device, SIM_OTHER_MEMORY, "%p is memory of device %d, not of device %d",
                      (void *)end->owner->base, end->device, device);
}

static int check_alignment(const void *to, const void *from, enum sim_kind kind)
{
    if (kind != KIND_D2D || ((uintptr_t)to | (uintptr_t)from) % sim_api.alignment == 0) {
        return SIM_OK;
    }
    return sim_fail(SIM_UNALIGNED, "a copy within a device, from %p to %p, wants both aligned to %zu bytes", from, to,
                    sim_api.alignment);
}

/* Whether an end is on the side that the caller claims. */
static bool is_as_claimed(const struct end *end, bool device)
{
    return end->shared || (end->device >= 0) == device;
}

/* Finds both ends of a copy, and its kind. */
static int find_ends(struct end *target, void *to, struct end *source, const void *from, size_t size, int claimed,
                     enum sim_kind *kind)
{
    static const enum sim_kind kinds[2][2] = {{KIND_H2H, KIND_H2D}, {KIND_D2H, KIND_D2D}};
    int result = find_end(from, size, source);

    if (result == SIM_OK) {
        result = find_end(to, size, target);
    }
    if (result != SIM_OK) {
        return result;
    }
    *kind = kinds[source->device >= 0][target->device >= 0];
    if (claimed < 0) {
        return SIM_OK;
    }
    if (!is_as_claimed(source, claimed == KIND_D2H || claimed == KIND_D2D) ||
        !is_as_claimed(target, claimed == KIND_H2D || claimed == KIND_D2D)) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "a copy from %p to %p is not %s but %s", from, to,
                          kind_names[claimed], kind_names[*kind]);
    }
    *kind = (enum sim_kind)claimed;
    return SIM_OK;
}

/* Counts a copy that uses memory, until unpin. */
static void pin(struct allocation *owner, const unsigned char *bytes, size_t size)
{
    if (owner != NULL) {
        owner->users++;
        if (owner->memory == MEMORY_VIRTUAL) {
            sim_use_virtual(owner, (size_t)(bytes - owner->bytes), size, 1);
        }
    }
}

static void unpin(struct allocation *owner, const unsigned char *bytes, size_t size)
{
    if (owner != NULL && owner->memory == MEMORY_VIRTUAL) {
        sim_use_virtual(owner, (size_t)(bytes - owner->bytes), size, -1);
    }
    sim_end_use(owner);
}

int sim_check_memory_of(const void *address, int device)
{
    struct end end;
    int result = find_end(address, 1, &end);

    if (result == SIM_OK && end.device != device) {
        result = sim_misuse(MISUSE_other_device, SIM_OTHER_MEMORY, "%p is not memory of device %d", address, device);
    }
    return result;
}

static bool is_lost(const struct allocation *owner, int device)
{
    bool of_device = owner != NULL && (owner->memory == MEMORY_DEVICE || owner->memory == MEMORY_MANAGED);

    return of_device && owner->device != device && sim.device[owner->device].lost;
}

int sim_check_piece(const struct piece *piece, int device)
{
    if (is_lost(piece->from_owner, device) || is_lost(piece->to_owner, device)) {
        return sim_fail(SIM_LOST, "memory of a copy is of a device that is lost");
    }
    return SIM_OK;
}

int sim_prepare(struct piece *piece, void *to, size_t room, const void *from, size_t size, int claimed, int device,
                bool by_host, enum sim_kind *kind)
{
    struct end source, target;
    int result;

    if (size == 0 || room < size) {
        return sim_fail(SIM_INVALID, "a copy of %zu bytes to where %zu bytes have room", size, room);
    }
    if ((result = find_ends(&target, to, &source, from, size, claimed, kind)) != SIM_OK ||
        (result = check_owner(&source, device, by_host, *kind)) != SIM_OK ||
        (result = check_owner(&target, device, by_host, *kind)) != SIM_OK ||
        (result = check_alignment(to, from, *kind)) != SIM_OK) {
        return result;
    }
    pin(source.owner, source.bytes, size);
    pin(target.owner, target.bytes, size);
    *piece = (struct piece){target.bytes, source.bytes, size, target.owner, source.owner, NULL};
    return SIM_OK;
}

void sim_release_piece(struct piece *piece)
{
    unpin(piece->from_owner, piece->from, piece->size);
    unpin(piece->to_owner, piece->to, piece->size);
    free(piece->early);
}

/* Moves bytes from or to the program's own memory; false where that is not mapped. Called without the lock. */
static bool move_checked(unsigned char *to, const unsigned char *from, size_t size)
{
    while (size > 0) {
        /* The kernel checks both ends without a signal, and moves less than 2 GiB at once. */
        size_t step = size < (size_t)1 << 30 ? size : (size_t)1 << 30;
        struct iovec target = {to, step}, source = {(void *)from, step};
        ssize_t moved = process_vm_readv(getpid(), &target, 1, &source, 1, 0);

        if (moved < 0 && (errno == EPERM || errno == ENOSYS)) { /* forbidden here, as in some containers */
            memcpy(to, from, size);
            return true;
        }
        if (moved <= 0) {
            return false;
        }
        to += moved;
        from += moved;
        size -= (size_t)moved;
    }
    return true;
}

bool sim_read_early(struct piece *piece)
{
    piece->early = malloc(piece->size);
    return piece->early != NULL && move_checked(piece->early, piece->from, piece->size);
}

bool sim_is_pageable(const struct piece *piece)
{
    return piece->from_owner == NULL || piece->to_owner == NULL;
}

bool sim_move(const struct piece *piece)
{
    const unsigned char *from = piece->early != NULL ? piece->early : piece->from;

    if (sim_is_pageable(piece)) {
        return move_checked(piece->to, from, piece->size);
    }
    memmove(piece->to, from, piece->size);
    return true;
}

void sim_count_copy(enum sim_kind kind, bool pageable, size_t size)
{
    sim.counters.copies[kind]++;
    sim.counters.copied_bytes[kind] += size;
    sim.counters.pageable_copies += pageable;
}

/* Sleeps until a time. Called without the lock. */
static void sleep_until(int64_t time)
{
    struct timespec t = {(time_t)(time / 1000000000), (long)(time % 1000000000)};
    int slack = sim_set_precise_timers();

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
    sim_restore_timers(slack);
}

int sim_copy_now(void *to, size_t room, const void *from, size_t size, int claimed)
{
    struct piece piece;
    enum sim_kind kind;
    int64_t end;
    bool moved, pageable;
    int result = sim_prepare(&piece, to, room, from, size, claimed, sim_current(), false, &kind);

    if (result != SIM_OK) {
        return result;
    }
    pageable = sim_is_pageable(&piece);
    sim_count_copy(kind, pageable, size);
    end = sim_now() + (kind == KIND_H2H ? 0 : sim_copy_cost(kind, pageable, (struct sim_work){size, 1, SIM_ELEMENTS}));
    pthread_mutex_unlock(&sim.lock);
    moved = sim_move(&piece);
    sleep_until(end);
    pthread_mutex_lock(&sim.lock);
    sim_release_piece(&piece);
    return moved ? SIM_OK : sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "there are no %zu bytes at %p or at %p", size,
                                       from, to);
}

int sim_set_now(void *to, size_t room, int value, size_t size)
{
    struct end end;
    int result;

    if (size == 0 || room < size) {
        return sim_fail(SIM_INVALID, "setting %zu bytes where %zu bytes have room", size, room);
    }
    result = find_end(to, size, &end);
    if (result == SIM_OK && end.owner == NULL) {
        result = sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "%p is memory of no device", to);
    }
    if (result == SIM_OK) {
        result = check_owner(&end, sim_current(), false, KIND_H2D);
    }
    if (result != SIM_OK) {
        return result;
    }
    pin(end.owner, end.bytes, size);
    pthread_mutex_unlock(&sim.lock);
    memset(end.bytes, value, size);
    pthread_mutex_lock(&sim.lock);
    unpin(end.owner, end.bytes, size);
    return SIM_OK;
}
