/* Copies: checking one, and moving its bytes. */
#ifndef SIM_COPY_H
#define SIM_COPY_H

#include "memory.h"

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
