/* Handles: a table of the objects that they stand for. */
#include "handle.h"

#include <stdint.h>

/* A handle is its slot's number and how often the slot was used, under a mark that no address has. */
#define HANDLE_MARK ((uintptr_t)0x5ac1 << 48)
#define HANDLE_SLOTS ((size_t)1 << 16)

static struct slot {
    enum sim_object type;
    void *object;
    uint32_t uses;
} slots[HANDLE_SLOTS];
static size_t slots_used; /* the slots from here on were never used */

void *sim_handle(enum sim_object type, void *object)
{
    size_t i = 0;

    while (i < slots_used && slots[i].type != OBJECT_NONE) {
        i++;
    }
    if (i == HANDLE_SLOTS) {
        return NULL;
    }
    slots_used += i == slots_used;
    slots[i].type = type;
    slots[i].object = object;
    slots[i].uses++;
    return (void *)(HANDLE_MARK | (uintptr_t)slots[i].uses << 16 | i);
}

static struct slot *slot_of(const void *handle)
{
    uintptr_t number = (uintptr_t)handle;
    struct slot *slot = &slots[number % HANDLE_SLOTS];

    return number >> 48 == HANDLE_MARK >> 48 && slot->uses == (uint32_t)(number >> 16) ? slot : NULL;
}

void *sim_object(enum sim_object type, const void *handle)
{
    struct slot *slot = slot_of(handle);

    return slot != NULL && slot->type == type ? slot->object : NULL;
}

void *sim_next_object(enum sim_object type, size_t *position)
{
    while (*position < slots_used) {
        struct slot *slot = &slots[(*position)++];

        if (slot->type == type) {
            return slot->object;
        }
    }
    return NULL;
}

void sim_drop_handle(const void *handle)
{
    struct slot *slot = slot_of(handle);

    slot->type = OBJECT_NONE;
    slot->object = NULL;
}
