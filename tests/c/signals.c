/*
 * The program's own signal handlers: they run, on threads of the program only (Go leaves SIGCHLD open on its own, too),
 * and interrupt a wait.
 */
#include "stuck_peer.h"

#include <dirent.h>
#include <signal.h>
#include <sys/syscall.h>

enum { SIZE = 8 << 20 };

static unsigned char near[SIZE], far[SIZE];
static volatile sig_atomic_t handled, on_foreign_thread;
static volatile sig_atomic_t own_threads[2];

static void count(int number)
{
    int id = (int)syscall(SYS_gettid);

    handled++;
    if (number != SIGCHLD && id != own_threads[0] && id != own_threads[1]) {
        on_foreign_thread = 1;
    }
}

static void handle(int number, int flags)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = count;
    action.sa_flags = flags;
    CHECK(sigaction(number, &action, NULL) == 0);
}

static int is_blocked(const char *thread, int number)
{
    char path[300], line[256];
    unsigned long long mask = 0;
    FILE *status;

    snprintf(path, sizeof path, "/proc/self/task/%s/status", thread);
    status = fopen(path, "r");
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) != NULL) {
        sscanf(line, "SigBlk: %llx", &mask);
    }
    fclose(status);
    return (int)(mask >> (number - 1) & 1);
}

static void test_threads_of_the_library_block_the_programs_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGUSR1, SIGUSR2, SIGPIPE, SIGWINCH};
    DIR *threads = opendir("/proc/self/task");
    struct dirent *thread;
    int others = 0;
    size_t i;

    CHECK(threads != NULL);
    while ((thread = readdir(threads)) != NULL) {
        int id = atoi(thread->d_name);

        if (id == 0) {
            continue;
        }
        others += id != own_threads[0];
        for (i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            CHECK_EQUAL(is_blocked(thread->d_name, numbers[i]), id != own_threads[0]);
        }
    }
    closedir(threads);
    CHECK(others > 0);
}

/* Signals that a thread is sent, so many of that number unless it is over before, each after a pause. */
struct shots {
    pthread_t thread;
    int number, count;
    struct timespec pause;
    volatile int over;
};

static void *shoot(void *arg)
{
    const struct shots *shots = arg;
    int i;

    own_threads[1] = (int)syscall(SYS_gettid);
    for (i = 0; i < shots->count && !shots->over; i++) {
        nanosleep(&shots->pause, NULL);
        CHECK(pthread_kill(shots->thread, shots->number) == 0);
    }
    return NULL;
}

/* What interrupts waits until it is over: a signal that comes between two waits interrupts none. */
static struct shots interruptions(void)
{
    struct shots shots = {pthread_self(), SIGUSR1, 1000, {0, 200000000}, 0};

    return shots;
}

/* A handler with these flags ends a wait, that may then be repeated. */
static void check_interrupted(transfer_engine_t engine, segment_id_t stuck, int flags)
{
    batch_id_t batch = start(engine, OPCODE_WRITE, near, stuck, STUCK_BASE, SIZE);
    struct shots shots = interruptions();
    pthread_t sender;
    double began = now();
    int i;

    handle(SIGUSR1, flags);
    handled = 0;
    CHECK(pthread_create(&sender, NULL, shoot, &shots) == 0);
    for (i = 0; i < 3; i++) {
        CHECK_EQUAL(kvferry_batch_wait(engine, batch, -1), KVFERRY_ERR_INTERRUPTED);
        CHECK(handled > i);
    }
    shots.over = 1;
    CHECK(pthread_join(sender, NULL) == 0);
    CHECK(now() - began < 20);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 10), KVFERRY_ERR_TIMED_OUT);
    CHECK_EQUAL(kvferry_batch_discard(engine, batch), 0);
}

/* The signal with which Go's runtime interrupts its own threads may come late, and is none of the program's. */
static void test_gos_own_signal_interrupts_no_wait(transfer_engine_t engine, segment_id_t stuck)
{
    batch_id_t batch = start(engine, OPCODE_WRITE, near, stuck, STUCK_BASE, SIZE);
    struct shots shots = {pthread_self(), SIGURG, 10, {0, 20000000}, 0};
    pthread_t sender;
    sigset_t mask;

    CHECK(pthread_create(&sender, NULL, shoot, &shots) == 0);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 300), KVFERRY_ERR_TIMED_OUT);
    CHECK(pthread_join(sender, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0);
    CHECK(!sigismember(&mask, SIGURG));
    CHECK_EQUAL(kvferry_batch_discard(engine, batch), 0);
}

/* A peer that takes a connection and never answers it cannot keep a program from its signals, nor from ending. */
static void test_open_is_interrupted_and_ended(void)
{
    transfer_engine_t engine = make_engine();
    struct shots shots = interruptions();
    pthread_t sender;
    double began = now();
    char name[64];
    int port, i;

    stuck_listen(&port);
    snprintf(name, sizeof name, "127.0.0.1:%d", port);
    handle(SIGUSR1, SA_RESTART);
    CHECK(pthread_create(&sender, NULL, shoot, &shots) == 0);
    for (i = 0; i < 3; i++) {
        CHECK_EQUAL(kvferry_open_segment(engine, name, -1), KVFERRY_ERR_INTERRUPTED);
    }
    shots.over = 1;
    CHECK(pthread_join(sender, NULL) == 0);
    destroyTransferEngine(engine);
    CHECK(now() - began < 20);
}

static volatile int storm_over;

static void *storm(void *unused)
{
    static const int numbers[] = {SIGUSR1, SIGUSR2, SIGALRM, SIGCHLD};
    struct timespec pause = {0, 100000};
    int i;

    own_threads[1] = (int)syscall(SYS_gettid);
    for (i = 0; !storm_over; i++) {
        CHECK(kill(getpid(), numbers[i % 4]) == 0);
        nanosleep(&pause, NULL);
    }
    return unused;
}

/* A handler that is installed without SA_ONSTACK at any time has it soon: on Go's stacks it would do harm. */
static void test_handler_is_moved_off_gos_stacks(transfer_engine_t engine)
{
    struct timespec pause = {0, 100000000};
    struct sigaction action;

    handle(SIGUSR2, SA_RESTART | SA_NODEFER);
    nanosleep(&pause, NULL);
    CHECK_EQUAL(discoverTopology(engine), 0);
    CHECK(sigaction(SIGUSR2, NULL, &action) == 0);
    CHECK_EQUAL(action.sa_flags & (SA_ONSTACK | SA_RESTART | SA_NODEFER), SA_ONSTACK | SA_RESTART | SA_NODEFER);
    CHECK(action.sa_handler == count);
    handled = 0;
    CHECK(raise(SIGUSR2) == 0);
    CHECK_EQUAL(handled, 1);
}

/* Handlers were installed without SA_ONSTACK. */
static void test_transfers_and_handlers_do_not_harm_each_other(transfer_engine_t engine, segment_id_t peer)
{
    pthread_t sender;
    int i;

    handled = on_foreign_thread = 0;
    CHECK(pthread_create(&sender, NULL, storm, NULL) == 0);
    for (i = 0; i < 300 || handled <= 10; i++) {
        size_t length = (size_t)1 << (i % 22);

        fill(near, 64, (uint32_t)i);
        CHECK_EQUAL(move(engine, OPCODE_WRITE, near, peer, far, length), STATUS_COMPLETED);
        CHECK(memcmp(near, far, length) == 0);
    }
    storm_over = 1;
    CHECK(pthread_join(sender, NULL) == 0);
    CHECK(!on_foreign_thread);
}

/* The target goes away while data is on its way to it: the program must not see a SIGPIPE. */
static void test_lost_peer_raises_no_sigpipe(void)
{
    transfer_engine_t engine = make_engine(), peer = make_engine();
    batch_id_t batch;
    segment_id_t id;
    int i;

    CHECK_EQUAL(registerLocalMemory(peer, far, SIZE, "*", 1), 0);
    id = open_peer(engine, peer);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, id, far, SIZE), STATUS_COMPLETED);
    signal(SIGPIPE, SIG_DFL);
    batch = allocateBatchID(engine, 64);
    for (i = 0; i < 64; i++) {
        transfer_request_t r = request(OPCODE_WRITE, near, id, far, SIZE);

        CHECK_EQUAL(submitTransfer(engine, batch, &r, 1), 0);
    }
    destroyTransferEngine(peer);
    CHECK_EQUAL(kvferry_batch_wait(engine, batch, 20000), KVFERRY_ERR_FAILED);
    for (i = 0; i < 5; i++) {
        CHECK_EQUAL(move(engine, OPCODE_WRITE, near, id, far, SIZE), STATUS_FAILED);
    }
    destroyTransferEngine(engine);
}

int main(void)
{
    transfer_engine_t engine, target;
    segment_id_t peer, stuck;

    own_threads[0] = (int)syscall(SYS_gettid);
    handle(SIGUSR1, 0);
    handle(SIGUSR2, SA_RESTART);
    handle(SIGALRM, 0);
    handle(SIGCHLD, SA_RESTART);
    engine = make_engine();
    target = make_engine();
    CHECK_EQUAL(registerLocalMemory(target, far, SIZE, "*", 1), 0);
    peer = open_peer(engine, target);
    CHECK_EQUAL(move(engine, OPCODE_WRITE, near, peer, far, SIZE), STATUS_COMPLETED);
    test_threads_of_the_library_block_the_programs_signals();
    test_handler_is_moved_off_gos_stacks(engine);
    test_transfers_and_handlers_do_not_harm_each_other(engine, peer);
    start_stuck_peer();
    stuck = openSegment(engine, stuck_name);
    check_interrupted(engine, stuck, 0);
    check_interrupted(engine, stuck, SA_RESTART);
    test_gos_own_signal_interrupts_no_wait(engine, stuck);
    test_open_is_interrupted_and_ended();
    test_lost_peer_raises_no_sigpipe();
    destroyTransferEngine(engine);
    destroyTransferEngine(target);
    return 0;
}
