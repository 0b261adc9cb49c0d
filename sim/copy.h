/* Copies: checking one, and moving its bytes. */
#ifndef SIM_COPY_H
#define SIM_COPY_H

#include "memory.h"

/* One copy: where the bytes of both ends are, and their allocations. */
struct piece {
    unsigned char *to;
    const unsigned char *from;
    size_t size;
    struct allocation *to_owner, *from_owner; /* NULL for pageable memory */
    unsigned char *early;                     /* the bytes, where they were read before its turn; freed with it */
};

/* Checks a copy on a device, and finds its bytes. The owners are in use until sim_release_piece. claimed is the kind
 * that the caller names, or -1; *kind is the actual one. by_host is whether it may be of memory of other devices to
 * which this one has no access. */
int sim_prepare(struct piece *piece, void *to, size_t room, const void *from, size_t size, int claimed, int device,
                bool by_host, enum sim_kind *kind);

/* Checks that memory, if it is a device's, is that of a device. */
int sim_check_memory_of(const void *address, int device);

/* Why a copy on a device fails whatever it is told: memory of another device is lost. */
int sim_check_piece(const struct piece *piece, int device);
void sim_release_piece(struct piece *piece);
bool sim_read_early(struct piece *piece); /* false where the source is not mapped, or there is no memory for it */
bool sim_is_pageable(const struct piece *piece);
bool sim_move(const struct piece *piece); /* called without the lock; false where pageable memory is not mapped */
void sim_count_copy(enum sim_kind kind, bool pageable, size_t size);

/* Synchronous: the bytes are moved when these return. */
int sim_copy_now(void *to, size_t room, const void *from, size_t size, int claimed);
int sim_set_now(void *to, size_t room, int value, size_t size);

#endif
