/* Copies: what is wrong with one, and the moving of its bytes. */
#include "device.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static const char *const kind_names[KINDS] = {"host to host", "host to device", "device to host", "device to device"};

/* Finds where the bytes of one end are. NULL is returned in *bytes, and a reason as result, where they are nowhere. */
static int find_end(const void *address, size_t size, unsigned char **bytes, struct allocation **owner)
{
    enum sim_memory memory = sim_locate(address, owner);
    size_t offset;

    *bytes = NULL;
    if (address == NULL) {
        return sim_fail(SIM_INVALID, "one end of a copy is NULL");
    }
    if (memory == MEMORY_UNKNOWN) {
        *bytes = (unsigned char *)address;
        return SIM_OK;
    }
    if (memory == MEMORY_FREED) {
        return sim_misuse(MISUSE_use_after_free, SIM_INVALID, "%p is in memory that was freed", address);
    }
    offset = (uintptr_t)address - (*owner)->base;
    if (offset > (*owner)->size || size > (*owner)->size - offset) {
        return sim_misuse(MISUSE_out_of_bounds, SIM_INVALID, "%zu bytes at %p end behind the %zu bytes allocated at %p",
                          size, address, (*owner)->size, (void *)(*owner)->base);
    }
    *bytes = (*owner)->bytes + offset;
    return SIM_OK;
}

static bool on_device(const struct allocation *owner)
{
    return owner != NULL && owner->memory == MEMORY_DEVICE;
}

/* Checks that a device may use memory in a copy: its own, or that of a peer where both ends are on devices. */
static int check_owner(const struct allocation *owner, int device, enum sim_kind kind)
{
    if (!on_device(owner) || owner->device == device) {
        return SIM_OK;
    }
    if (kind == KIND_D2D && (sim.device[device].peers >> owner->device & 1) != 0) {
        return SIM_OK;
    }
    return sim_misuse(MISUSE_other_device, SIM_OTHER_DEVICE, "%p is memory of device %d, not of device %d",
                      (void *)owner->base, owner->device, device);
}

static int check_alignment(const void *to, const void *from, enum sim_kind kind)
{
    if (kind != KIND_D2D || ((uintptr_t)to | (uintptr_t)from) % SIM_ALIGNMENT == 0) {
        return SIM_OK;
    }
    return sim_fail(SIM_UNALIGNED, "a copy within a device, from %p to %p, wants both aligned to %d bytes", from, to,
                    SIM_ALIGNMENT);
}

/* Finds both ends of a copy, and what it is. */
static int find_ends(struct piece *piece, void *to, const void *from, size_t size, enum sim_kind *kind)
{
    static const enum sim_kind kinds[2][2] = {{KIND_H2H, KIND_H2D}, {KIND_D2H, KIND_D2D}};
    unsigned char *source;
    int result = find_end(from, size, &source, &piece->from_owner);

    if (result == SIM_OK) {
        result = find_end(to, size, &piece->to, &piece->to_owner);
    }
    if (result == SIM_OK) {
        piece->from = source;
        piece->size = size;
        *kind = kinds[on_device(piece->from_owner)][on_device(piece->to_owner)];
    }
    return result;
}

static void hold(struct allocation *allocation)
{
    if (allocation != NULL) {
        allocation->users++;
    }
}

int sim_prepare(struct piece *piece, void *to, size_t room, const void *from, size_t size, int claimed, int device,
                enum sim_kind *kind)
{
    int result;

    if (size == 0 || room < size) {
        return sim_fail(SIM_INVALID, "a copy of %zu bytes to where %zu bytes have room", size, room);
    }
    result = find_ends(piece, to, from, size, kind);
    if (result != SIM_OK) {
        return result;
    }
    if (claimed >= 0 && (int)*kind != claimed) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "a copy from %p to %p is not %s but %s", from, to,
                          kind_names[claimed], kind_names[*kind]);
    }
    if ((result = check_owner(piece->from_owner, device, *kind)) != SIM_OK ||
        (result = check_owner(piece->to_owner, device, *kind)) != SIM_OK ||
        (result = check_alignment(to, from, *kind)) != SIM_OK) {
        return result;
    }
    hold(piece->from_owner);
    hold(piece->to_owner);
    return SIM_OK;
}

void sim_release_piece(struct piece *piece)
{
    sim_release(piece->from_owner);
    sim_release(piece->to_owner);
}

bool sim_is_pageable(const struct piece *piece)
{
    return piece->from_owner == NULL || piece->to_owner == NULL;
}

bool sim_move(const struct piece *piece)
{
    if (sim_is_pageable(piece)) {
        return sim_move_checked(piece->to, piece->from, piece->size);
    }
    memmove(piece->to, piece->from, piece->size);
    return true;
}

void sim_count_copy(enum sim_kind kind, bool pageable, size_t size)
{
    sim.counters.copies[kind]++;
    sim.counters.copied_bytes[kind] += size;
    sim.counters.pageable_copies += pageable;
}

/* Waits until a time, without the lock. */
static void sleep_until(int64_t time)
{
    struct timespec t = {(time_t)(time / 1000000000), (long)(time % 1000000000)};
    int slack = sim_sharpen_timers();

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
    sim_blunt_timers(slack);
}

int sim_copy_now(void *to, size_t room, const void *from, size_t size, int claimed)
{
    struct piece piece;
    enum sim_kind kind;
    int64_t end;
    bool moved, pageable;
    int result = sim_prepare(&piece, to, room, from, size, claimed, sim_current(), &kind);

    if (result != SIM_OK) {
        return result;
    }
    pageable = sim_is_pageable(&piece);
    sim_count_copy(kind, pageable, size);
    end = sim_now() + (kind == KIND_H2H ? 0 : sim_copy_cost(kind, pageable, size, 1));
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
    struct allocation *owner;
    unsigned char *bytes;
    int result;

    if (size == 0 || room < size) {
        return sim_fail(SIM_INVALID, "setting %zu bytes where %zu bytes have room", size, room);
    }
    result = find_end(to, size, &bytes, &owner);
    if (result == SIM_OK && owner == NULL) {
        result = sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "%p is memory of no device", to);
    }
    if (result == SIM_OK) {
        result = check_owner(owner, sim_current(), KIND_H2D);
    }
    if (result != SIM_OK) {
        return result;
    }
    owner->users++;
    pthread_mutex_unlock(&sim.lock);
    memset(bytes, value, size);
    pthread_mutex_lock(&sim.lock);
    sim_release(owner);
    return SIM_OK;
}
