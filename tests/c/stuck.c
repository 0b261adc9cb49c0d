/* Waiting for, giving up and destroying what a peer that does not answer holds up. */
#include "stuck_peer.h"

#include <errno.h>
#include <sys/resource.h>

enum { SIZE = 32 << 20 };

static unsigned char memory[SIZE];

static double cpu_time(void)
{
    struct rusage used;

    CHECK(getrusage(RUSAGE_SELF, &used) == 0);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void test_wait_ends_in_time_and_costs_no_cpu(transfer_engine_t engine, segment_id_t peer)
{
    batch_id_t batch = start(engine, OPCODE_WRITE, memory, peer, STUCK_BASE, SIZE);
    transfer_status_t status;
    double began, used;

    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 0), KVFERRY_ERR_TIMED_OUT);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 500), KVFERRY_ERR_TIMED_OUT);
    CHECK(strstr(kvferry_last_error(), "0 of ") != NULL);
    began = now();
    used = cpu_time();
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 1000), KVFERRY_ERR_TIMED_OUT);
    CHECK(now() - began > 0.99 && now() - began < 20);
    CHECK(cpu_time() - used < 0.2);
    CHECK_EQUAL(getTransferStatus(engine, batch, 0, &status), 0);
    CHECK(status.status == STATUS_WAITING && status.transferred_bytes == 0);
    CHECK_EQUAL(freeBatchID(engine, batch), 4);
    CHECK_EQUAL(getTransferStatus(engine, batch, 0, &status), 0);

    began = now();
    CHECK_EQUAL(kvferry_batch_discard(engine, batch), 0);
    CHECK(now() - began < 15);
    CHECK_EQUAL(getTransferStatus(engine, batch, 0, &status), 1);
}

static void test_sync_transfer_that_timed_out_is_discarded(transfer_engine_t engine, segment_id_t peer)
{
    uint64_t local = (uint64_t)(uintptr_t)memory, remote = (uint64_t)(uintptr_t)STUCK_BASE, length = SIZE;
    batch_id_t batch = INVALID_BATCH;

    CHECK_EQUAL(kvferry_transfer_sync(engine, OPCODE_READ, peer, &local, &remote, &length, 1, NULL, 200, &batch),
                KVFERRY_ERR_TIMED_OUT);
    CHECK(batch != INVALID_BATCH);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 100), KVFERRY_ERR_TIMED_OUT);
    CHECK_EQUAL(kvferry_batch_discard(engine, batch), 0);
}

static void test_several_batches_are_waited_for_at_once(transfer_engine_t engine, segment_id_t peer)
{
    batch_id_t batches[3], failed;
    double used;

    batches[0] = start(engine, OPCODE_WRITE, memory, LOCAL_SEGMENT, memory, 0);
    batches[1] = batches[0];
    CHECK_EQUAL(kvferry_batches_wait(engine, batches, 2, 20000), 0);
    CHECK_EQUAL(kvferry_batches_wait(engine, NULL, 0, -1), 0);
    batches[2] = start(engine, OPCODE_WRITE, memory, peer, STUCK_BASE, SIZE);
    used = cpu_time();
    CHECK_EQUAL(kvferry_batches_wait(engine, batches, 3, 0), KVFERRY_ERR_TIMED_OUT);
    CHECK_EQUAL(kvferry_batches_wait(engine, batches, 3, 500), KVFERRY_ERR_TIMED_OUT);
    CHECK(cpu_time() - used < 0.2);
    failed = start(engine, OPCODE_WRITE, memory, LOCAL_SEGMENT, memory, 1); /* not registered */
    batches[0] = failed;
    CHECK_EQUAL(kvferry_batches_wait(engine, batches, 3, 20000), KVFERRY_ERR_FAILED);
    CHECK_EQUAL(freeBatchID(engine, failed), 0);
    CHECK_EQUAL(kvferry_batches_wait(engine, batches, 3, 0), -1);
    CHECK_EQUAL(kvferry_batch_discard(engine, batches[2]), 0);
    CHECK_EQUAL(freeBatchID(engine, batches[1]), 0);
}

static void *wait_for_ever(void *argument)
{
    void **arguments = argument;

    return (void *)(intptr_t)kvferry_batch_wait(arguments[0], *(batch_id_t *)arguments[1], -1);
}

static void *wait_for_call(void *call)
{
    uint64_t value;

    return (void *)(intptr_t)kvferry_call_wait(call, -1, &value);
}

static void test_abandoning_a_call_wakes_who_waits(transfer_engine_t engine)
{
    char name[64], byte;
    pthread_t waiter;
    void *result;
    kvferry_call_t call;
    uint64_t value;
    int port, connection, listener = stuck_listen(&port);

    snprintf(name, sizeof name, "127.0.0.1:%d", port);
    call = kvferry_start_probe(engine, name);
    connection = accept(listener, NULL, NULL);
    CHECK(connection >= 0);
    CHECK(pthread_create(&waiter, NULL, wait_for_call, call) == 0);
    CHECK_EQUAL(kvferry_call_wait(call, 300, &value), KVFERRY_ERR_TIMED_OUT);
    CHECK_EQUAL(kvferry_call_abandon(call), 0);
    CHECK(pthread_join(waiter, &result) == 0);
    CHECK_EQUAL((intptr_t)result, -1);
    while (recv(connection, &byte, 1, MSG_DONTWAIT) == 1) { /* the question */
    }
    CHECK(errno == EAGAIN); /* it is still asked */
    CHECK_EQUAL(kvferry_call_wait(call, 0, &value), -1);
    CHECK_EQUAL(kvferry_call_abandon(call), -1);
    close(connection);
    close(listener);
}

static void test_destroy_ends_in_time_and_wakes_who_waits(transfer_engine_t engine, segment_id_t peer)
{
    batch_id_t batch = start(engine, OPCODE_WRITE, memory, peer, STUCK_BASE, SIZE);
    void *arguments[2], *result;
    pthread_t waiter;
    double began;

    arguments[0] = engine;
    arguments[1] = &batch;
    CHECK(pthread_create(&waiter, NULL, wait_for_ever, arguments) == 0);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 300), KVFERRY_ERR_TIMED_OUT);
    began = now();
    destroyTransferEngine(engine);
    CHECK(now() - began < 15);
    CHECK(pthread_join(waiter, &result) == 0);
    CHECK_EQUAL((intptr_t)result, KVFERRY_ERR_FAILED);
    memset(memory, 0, SIZE);
}

int main(void)
{
    transfer_engine_t engine = make_engine();
    segment_id_t peer;

    start_stuck_peer();
    peer = openSegment(engine, stuck_name);
    CHECK(peer > 0);
    test_wait_ends_in_time_and_costs_no_cpu(engine, peer);
    test_sync_transfer_that_timed_out_is_discarded(engine, peer);
    test_several_batches_are_waited_for_at_once(engine, peer);
    test_abandoning_a_call_wakes_who_waits(engine);
    test_destroy_ends_in_time_and_wakes_who_waits(engine, peer);
    return 0;
}
