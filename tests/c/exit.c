/* exit() with a live engine and a transfer in flight, on another thread's wait: argv[1] "return", "exit" or "thread". */
#include "stuck_peer.h"

static unsigned char memory[8 << 20];
static transfer_engine_t engine;
static batch_id_t batch;

static void *wait_for_ever(void *unused)
{
    kvferry_batch_wait(engine, batch, -1);
    return unused;
}

static void *end_process(void *unused)
{
    exit(0);
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t waiter, ender;

    CHECK_EQUAL(argc, 2);
    engine = make_engine();
    start_stuck_peer();
    batch = start(engine, OPCODE_WRITE, memory, openSegment(engine, stuck_name), STUCK_BASE, sizeof memory);
    CHECK(pthread_create(&waiter, NULL, wait_for_ever, NULL) == 0);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 100), KVFERRY_ERR_TIMED_OUT);
    if (strcmp(argv[1], "exit") == 0) {
        exit(0);
    }
    if (strcmp(argv[1], "thread") == 0) {
        CHECK(pthread_create(&ender, NULL, end_process, NULL) == 0);
        pthread_join(waiter, NULL);
    }
    return 0;
}
