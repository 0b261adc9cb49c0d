/* Memory, and copies from and to it. */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include "device.h"

/* Host memory is page-locked; registered memory is the program's own, page-locked later; managed memory is a device's
 * that the host can access; a virtual range has pieces of device memory mapped into it. */
enum sim_memory {
    MEMORY_UNKNOWN,
    MEMORY_DEVICE,
    MEMORY_HOST,
    MEMORY_REGISTERED,
    MEMORY_MANAGED,
    MEMORY_VIRTUAL,
    MEMORY_FREED
};

/* A range of addresses that a copy can be from or to. */
struct allocation {
    uintptr_t base;       /* the address that was handed out */
    size_t size, span;    /* as asked for; in whole pages */
    unsigned char *bytes; /* elsewhere where the host cannot access the address that was handed out */
    enum sim_memory memory;
    int device;               /* -1 for a virtual range */
    struct granule *granules; /* of a virtual range: what is mapped where */
    int users;                /* queued or running copies */
    bool freed;
};

/* memory.c */

int sim_malloc(enum sim_memory memory, size_t size, void **out);
int sim_free(enum sim_memory memory, void *address);

int sim_register(void *address, size_t size);
int sim_unregister(void *address);
size_t sim_drop_memory(int device); /* frees all that was allocated on a device; returns how much there was */

/* Finds the memory that an address lies in. MEMORY_UNKNOWN is the program's own memory. */
enum sim_memory sim_locate(const void *address, struct allocation **out);
bool sim_index(struct allocation *allocation); /* has sim_locate find it; false where there is no memory for that */
void sim_unindex(struct allocation *allocation);
void sim_release(struct allocation *allocation); /* one user less; NULL is nobody's memory */

/* Adds what there is of some kinds of memory. */
void sim_count_memory(const enum sim_memory *kinds, size_t n, size_t *allocations, size_t *bytes);

/* Moves bytes from or to memory of the program itself, which may not be there: false then. Called without the lock. */
bool sim_move_checked(unsigned char *to, const unsigned char *from, size_t size);

/* virtual.c */

enum { SIM_GRANULE = 2 << 20 }; /* bytes, of which a virtual range has a whole number */
int sim_reserve(size_t size, size_t alignment, void **out);
int sim_unreserve(void *address, size_t size);
int sim_create_piece(size_t size, int device, void **out);
int sim_drop_piece(void *handle);
int sim_map(void *address, size_t size, void *handle);
int sim_unmap(void *address, size_t size);
int sim_allow(void *address, size_t size, int device); /* lets the device access what is mapped there */

/* The device whose memory is mapped at all of a part of a virtual range, and open to it; -1 where there is none. */
int sim_mapped(const struct allocation *range, size_t offset, size_t size);

/* Counts copies that use a part of a range: one more or one less. */
void sim_use_virtual(struct allocation *range, size_t offset, size_t size, int change);

void sim_count_virtual(size_t *pieces, size_t *bytes, size_t *ranges);

/* copy.c */

/* One end to the other: where the bytes are, and whose they are. */
struct piece {
    unsigned char *to;
    const unsigned char *from;
    size_t size;
    struct allocation *to_owner, *from_owner; /* NULL for pageable memory */
    unsigned char *early;                     /* its bytes, where they were read before its turn; freed with it */
};

/* Checks a copy on a device, and finds where its bytes are: the pieces' owners have a user more until
 * sim_release_piece. *kind is what it is in truth; claimed is what the caller says, -1 for nothing. */
int sim_prepare(struct piece *piece, void *to, size_t room, const void *from, size_t size, int claimed, int device,
                enum sim_kind *kind);
void sim_release_piece(struct piece *piece);
bool sim_read_early(struct piece *piece); /* false where pageable memory is not there, or no memory for it */
bool sim_is_pageable(const struct piece *piece);
bool sim_move(const struct piece *piece); /* without the lock; false where pageable memory is not there */
void sim_count_copy(enum sim_kind kind, bool pageable, size_t size);

/* Done when they return, as a synchronous copy is. */
int sim_copy_now(void *to, size_t room, const void *from, size_t size, int claimed);
int sim_set_now(void *to, size_t room, int value, size_t size);

#endif
