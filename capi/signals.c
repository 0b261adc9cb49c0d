/*
 * Go runs goroutines on small stacks, and a signal handler without SA_ONSTACK runs on whatever stack its thread is on.
 * So the program's signals are kept away from the threads of the Go runtime, and handlers that may still meet a thread
 * that is in Go get SA_ONSTACK.
 */
#include "internal.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

sigset_t kvferry_callers_mask;

/*
 * The Go runtime gives each of its threads the mask that its first thread started with, and unblocks of it what it
 * needs for itself. Its first thread is made when the library is loaded, by a constructor without priority: this one
 * runs before it, and kvferry_restore_signal_mask after it.
 */
__attribute__((constructor(101))) static void block_signals(void)
{
    static const int runtimes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGURG, SIGPROF};
    sigset_t programs;
    size_t i;

    sigfillset(&programs);
    for (i = 0; i < sizeof runtimes / sizeof *runtimes; i++) {
        sigdelset(&programs, runtimes[i]);
    }
    pthread_sigmask(SIG_BLOCK, &programs, &kvferry_callers_mask);
}

/* Handlers that were installed longer ago than this have SA_ONSTACK when a call enters Go. */
#define TEND_INTERVAL_MS 50

static void move_to_alternate_stack(int number)
{
    struct sigaction action;

    if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
        return;
    }
    if ((action.sa_flags & SA_ONSTACK) == 0) {
        action.sa_flags |= SA_ONSTACK;
        sigaction(number, &action, NULL);
    }
}

void kvferry_tend_handlers(void)
{
    static int64_t tended_ms;
    struct timespec clock;
    int64_t now_ms;
    int number;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &clock);
    now_ms = (int64_t)clock.tv_sec * 1000 + clock.tv_nsec / 1000000;
    if (now_ms - __atomic_load_n(&tended_ms, __ATOMIC_RELAXED) < TEND_INTERVAL_MS) {
        return;
    }
    __atomic_store_n(&tended_ms, now_ms, __ATOMIC_RELAXED);
    for (number = 1; number <= SIGRTMAX; number++) {
        move_to_alternate_stack(number);
    }
}
