/* What the test programs share. A program tests one thing after the other and ends with 0, or says what was wrong and
 * ends with 1. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "transfer_engine_ext.h"

#define CHECK(what)                                                                                       \
    do {                                                                                                  \
        if (!(what)) {                                                                                    \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #what,             \
                    kvferry_last_error());                                                                 \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

#define CHECK_EQUAL(got, wanted)                                                                          \
    do {                                                                                                  \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);                                 \
        if (got_ != wanted_) {                                                                            \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld (last error: %s)\n", __FILE__, __LINE__, #got, got_, \
                    wanted_, kvferry_last_error());                                                        \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

/* An engine on the loopback device with TCP. */
static inline transfer_engine_t make_engine(void)
{
    transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);

    CHECK(engine != NULL);
    return engine;
}

/* The id by which one engine knows another. */
static inline segment_id_t open_peer(transfer_engine_t engine, transfer_engine_t peer)
{
    char name[128];
    segment_id_t id;

    CHECK_EQUAL(getLocalIpAndPort(peer, name, sizeof name), 0);
    id = openSegment(engine, name);
    CHECK(id >= 0);
    return id;
}

static inline transfer_request_t request(int opcode, void *local, segment_id_t target, const void *remote,
                                         uint64_t length)
{
    transfer_request_t r;

    r.opcode = opcode;
    r.source = local;
    r.target_id = target;
    r.target_offset = (uint64_t)(uintptr_t)remote;
    r.length = length;
    return r;
}

/* Submits one request in a batch of its own, and returns the batch. */
static inline batch_id_t start(transfer_engine_t engine, int opcode, void *local, segment_id_t target,
                               const void *remote, uint64_t length)
{
    transfer_request_t r = request(opcode, local, target, remote, length);
    batch_id_t batch = allocateBatchID(engine, 1);

    CHECK(batch != INVALID_BATCH);
    CHECK_EQUAL(submitTransfer(engine, batch, &r, 1), 0);
    return batch;
}

/* The state of a task once it has ended. */
static inline int outcome(transfer_engine_t engine, batch_id_t batch, size_t task)
{
    transfer_status_t status;

    while (kvferry_batch_wait(engine, batch, 20000) == KVFERRY_ERR_INTERRUPTED) {
    }
    CHECK_EQUAL(getTransferStatus(engine, batch, task, &status), 0);
    return status.status;
}

/* Runs one request to its end and returns the task's state. */
static inline int move(transfer_engine_t engine, int opcode, void *local, segment_id_t target, const void *remote,
                       uint64_t length)
{
    batch_id_t batch = start(engine, opcode, local, target, remote, length);
    int state = outcome(engine, batch, 0);

    CHECK_EQUAL(freeBatchID(engine, batch), 0);
    return state;
}

/* Bytes in which no part repeats another. */
static inline void fill(void *memory, size_t length, uint32_t seed)
{
    unsigned char *bytes = (unsigned char *)memory;
    uint64_t state = seed * 2654435761u + 88172645463325252u;
    size_t i;

    for (i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes[i] = (unsigned char)(state >> 32);
    }
}

static inline double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#endif
