/*
 * Go runs goroutines on small stacks, and a signal handler without SA_ONSTACK runs on the current stack of its thread. So the
 * threads of the Go runtime block the program's signals. Handlers that may still run on a thread that is in Go get SA_ONSTACK.
 */
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

sigset_t kvferry_callers_mask;

/*
 * The Go runtime gives each of its threads the signal mask of its first thread, without the signals that it needs itself. Its first
 * thread is started when the library is loaded, by a constructor without priority. This constructor runs before it, and
 * kvferry_restore_signal_mask after it.
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

/* When a call enters Go, handlers that were installed longer ago than this have SA_ONSTACK. */
#define TEND_INTERVAL_MS 50

/* SA_RESTORER of the kernel, which the C library adds to what the program sets. */
#define RESTORER 0x04000000

static int same_action(const struct sigaction *a, const struct sigaction *b)
{
    int number;

    if (a->sa_handler != b->sa_handler || ((a->sa_flags ^ b->sa_flags) & ~RESTORER) != 0) {
        return 0;
    }
    for (number = 1; number <= SIGRTMAX; number++) {
        if (sigismember(&a->sa_mask, number) != sigismember(&b->sa_mask, number)) {
            return 0;
        }
    }
    return 1;
}

/*
 * The kernel has no compare-and-swap for actions, but sigaction() returns the action that it has replaced. If that is not the one
 * that the caller has seen, the program has changed it meanwhile. Then the program's action is restored, and so is one that it
 * sets during that. The wanted action is installed for a moment in this case.
 */
int kvferry_replace_action(int number, const struct sigaction *seen, const struct sigaction *wanted)
{
    struct sigaction put = *wanted, expected = *seen, replaced;
    int result = 0;

    while (sigaction(number, &put, &replaced) == 0) {
        if (same_action(&replaced, &expected)) {
            return result;
        }
        expected = put;
        put = replaced;
        result = EAGAIN;
    }
    return errno;
}

static void move_to_alternate_stack(int number)
{
    struct sigaction seen, wanted;

    if (sigaction(number, NULL, &seen) != 0 || seen.sa_handler == SIG_DFL || seen.sa_handler == SIG_IGN) {
        return;
    }
    if ((seen.sa_flags & SA_ONSTACK) == 0) {
        wanted = seen;
        wanted.sa_flags |= SA_ONSTACK;
        kvferry_replace_action(number, &seen, &wanted); /* a newer handler gets it at the next call */
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
