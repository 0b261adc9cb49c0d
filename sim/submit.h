/* Submitting copies, and calls of the program's functions, to streams. */
#ifndef SIM_SUBMIT_H
#define SIM_SUBMIT_H

#include "streams.h"

/* Copies from memory of one device to that of another; by way of the host where the stream's has no access. */
int sim_copy_peer(void *to, int to_device, const void *from, int from_device, size_t size, void *stream);

int sim_copy_async(void *to, size_t room, const void *from, size_t size, int claimed, void *stream);

struct batch {
    void **to;
    size_t *rooms;
    void **from;
    size_t *sizes;
    size_t count;
    const bool *early; /* which sources are read at once; NULL: none */
    bool rows;         /* of a matrix: they cost what rows do */
    bool by_host;      /* between devices without access: it costs, and counts as, two copies */
};

/* Copies in no order, all of the claimed kind unless that is -1. *failed is the element that was refused, or
 * SIZE_MAX. */
int sim_copy_batch(const struct batch *batch, int claimed, size_t *failed, void *stream);

/* A kernel that makes the copies, in no order. Where it cannot access memory, it fails with SIM_DMA_ERROR when it is
 * executed, after any of the copies. */
int sim_launch(const struct batch *batch, void *stream);

int sim_call_in_stream(void *stream, void (*function)(void *), void *argument);

#endif
