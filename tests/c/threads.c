/* Many threads use one engine at once, and go on while another thread destroys it. */
#include "check.h"

#include <pthread.h>

enum { THREADS = 16, ROUNDS = 40, BLOCK = 4096, BLOCKS = 16, SHARE = BLOCK * BLOCKS };

static unsigned char near[THREADS * SHARE], far[THREADS * SHARE], scratch[THREADS * BLOCK];
static transfer_engine_t engine, target;
static segment_id_t peer;

static void *work(void *argument)
{
    size_t thread = (size_t)(uintptr_t)argument;
    unsigned char *mine = near + thread * SHARE, *theirs = far + thread * SHARE;
    transfer_request_t r[BLOCKS];
    int round, i;

    for (round = 0; round < ROUNDS; round++) {
        batch_id_t batch = allocateBatchID(engine, BLOCKS);
        int opcode = round % 2 ? OPCODE_READ : OPCODE_WRITE;

        fill(opcode == OPCODE_WRITE ? mine : theirs, SHARE, (uint32_t)(thread * ROUNDS + (size_t)round));
        for (i = 0; i < BLOCKS; i++) {
            r[i] = request(opcode, mine + i * BLOCK, peer, theirs + i * BLOCK, BLOCK);
        }
        CHECK_EQUAL(submitTransfer(engine, batch, r, BLOCKS), 0);
        CHECK_EQUAL(registerLocalMemory(engine, scratch + thread * BLOCK, BLOCK, "*", 1), 0);
        CHECK_EQUAL(open_peer(engine, target), peer);
        CHECK_EQUAL(outcome(engine, batch, BLOCKS - 1), STATUS_COMPLETED);
        CHECK(memcmp(mine, theirs, SHARE) == 0);
        CHECK_EQUAL(freeBatchID(engine, batch), 0);
        CHECK_EQUAL(unregisterLocalMemory(engine, scratch + thread * BLOCK), 0);
        CHECK(openSegment(engine, NULL) < 0);
        CHECK(strstr(kvferry_last_error(), "NULL") != NULL);
    }
    return NULL;
}

/* Uses the engine until it is gone. */
static void *work_until_refused(void *argument)
{
    size_t thread = (size_t)(uintptr_t)argument;

    for (;;) {
        batch_id_t batch = allocateBatchID(engine, 1);
        transfer_request_t r = request(OPCODE_WRITE, near + thread * SHARE, peer, far + thread * SHARE, SHARE);
        transfer_status_t status;
        int result;

        if (batch == INVALID_BATCH) {
            return NULL;
        }
        submitTransfer(engine, batch, &r, 1);
        result = kvferry_batch_wait(engine, batch, 10000);
        CHECK(result != KVFERRY_ERR_TIMED_OUT);
        getTransferStatus(engine, batch, 0, &status);
        freeBatchID(engine, batch);
    }
}

static void run(void *(*body)(void *), void (*meanwhile)(void))
{
    pthread_t threads[THREADS];
    size_t i;

    for (i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, body, (void *)(uintptr_t)i) == 0);
    }
    if (meanwhile != NULL) {
        meanwhile();
    }
    for (i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

static void *destroy(void *unused)
{
    destroyTransferEngine(engine);
    return unused;
}

/* Two threads at once destroy the engine that others use. */
static void destroy_twice(void)
{
    struct timespec pause = {0, 200000000};
    pthread_t other;

    nanosleep(&pause, NULL);
    CHECK(pthread_create(&other, NULL, destroy, NULL) == 0);
    destroyTransferEngine(engine);
    CHECK(pthread_join(other, NULL) == 0);
}

int main(void)
{
    engine = make_engine();
    target = make_engine();
    CHECK_EQUAL(registerLocalMemory(target, far, sizeof far, "*", 1), 0);
    peer = open_peer(engine, target);
    run(work, NULL);
    run(work_until_refused, destroy_twice);
    CHECK_EQUAL(discoverTopology(engine), -1);
    CHECK_EQUAL(unregisterLocalMemory(target, far), 0);
    destroyTransferEngine(target);
    return 0;
}
