/* What the programs that test the C interface share: checks, and engines that move bytes. */
#ifndef CHECK_H
#define CHECK_H

#include "transfer_engine_ext.h"

#define LAST_ERROR() kvferry_last_error()
#include "../support/testing.h"

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

#endif
