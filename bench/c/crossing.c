/*
 * What a call of the C library costs, with the way into Go and back, in the format of Go's benchmarks.
 *
 *     crossing [COUNT]    measures everything so many times, 5 by default
 *
 * The transfers are of one byte per request, within the process, and have ended when they are submitted: nothing is
 * waited for. "TransferSync" is one call that submits arrays and waits, "SubmitAndWait" the calls for each step, and
 * "Wait" the wait alone.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "transfer_engine_ext.h"

enum { MOST = 4096 };

static const double LONG_ENOUGH = 0.2; /* seconds that a figure is the mean of, at least */

static transfer_engine_t engine;
static unsigned char memory[2 * MOST];
static uint64_t local[MOST], remote[MOST], lengths[MOST];
static batch_id_t ended; /* for wait_again */

static void check(int code)
{
    if (code != 0) {
        fprintf(stderr, "crossing: code %d: %s\n", code, kvferry_last_error());
        exit(1);
    }
}

static void transfer_sync(size_t count)
{
    batch_id_t batch;

    check(kvferry_transfer_sync(engine, OPCODE_WRITE, LOCAL_SEGMENT, local, remote, lengths, count, NULL, -1, &batch));
}

static void submit(size_t count, batch_id_t *batch)
{
    check(kvferry_submit(engine, OPCODE_WRITE, LOCAL_SEGMENT, local, remote, lengths, count, NULL, batch));
}

static void submit_and_wait(size_t count)
{
    batch_id_t batch;

    submit(count, &batch);
    check(kvferry_batch_wait(engine, batch, -1));
    check(freeBatchID(engine, batch));
}

static void wait_again(size_t count)
{
    (void)count;
    check(kvferry_batch_wait(engine, ended, -1));
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void measure(const char *name, void (*call)(size_t), size_t requests)
{
    double took = 0;
    long times = 1;

    while (took < LONG_ENOUGH) {
        double start = now();

        times *= 2;
        for (long i = 0; i < times; i++) {
            call(requests);
        }
        took = now() - start;
    }
    printf("Benchmark%s/requests=%zu\t%ld\t%.1f ns/op\n", name, requests, times, took / (double)times * 1e9);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 5;

    engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 0);
    if (engine == NULL) {
        check(-1);
    }
    check(registerLocalMemory(engine, memory, sizeof memory, "cpu:0", 1));
    for (int i = 0; i < MOST; i++) {
        local[i] = (uintptr_t)memory + (uint64_t)i;
        remote[i] = local[i] + MOST;
        lengths[i] = 1;
    }
    submit(1, &ended);
    printf("pkg: kvferry/bench/crossing\n");
    for (int i = 0; i < count; i++) {
        static const size_t requests[] = {1, 64, MOST};

        for (size_t j = 0; j < sizeof requests / sizeof *requests; j++) {
            measure("TransferSync", transfer_sync, requests[j]);
            measure("SubmitAndWait", submit_and_wait, requests[j]);
        }
        measure("Wait", wait_again, 1);
    }
    destroyTransferEngine(engine);
    return 0;
}
