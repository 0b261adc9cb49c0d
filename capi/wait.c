/* One word that one thread waits for and another one sets. */
#include "internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The longest single wait, a day. After a signal handler with SA_RESTART the kernel would restart a wait without a time limit, and
 * the caller would not see the interruption. */
#define LONGEST_WAIT_MS 86400000

int64_t kvferry_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits once until the word is not 0. 0 when that may be so, or an errno. */
static int wait_once(uint32_t *word, int64_t ms)
{
    struct timespec limit;

    if (ms > LONGEST_WAIT_MS) {
        ms = LONGEST_WAIT_MS;
    }
    limit.tv_sec = ms / 1000;
    limit.tv_nsec = ms % 1000 * 1000000;
    if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0) == 0) {
        return 0;
    }
    return errno;
}

static int wait_for_word(uint32_t *word, int64_t timeout_ms)
{
    int64_t start = kvferry_now_ms();

    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 0) {
        int64_t left = LONGEST_WAIT_MS;

        if (timeout_ms >= 0) {
            left = timeout_ms - (kvferry_now_ms() - start);
            if (left <= 0) {
                return ETIMEDOUT;
            }
        }
        if (wait_once(word, left) == EINTR) {
            return EINTR;
        }
    }
    return 0;
}

/* Go sends SIGURG to a thread to preempt the goroutine on it. The signal may come when the thread has left Go and waits here. It is
 * blocked, so that it does not interrupt the wait. */
int kvferry_wait_for_word(uint32_t *word, int64_t timeout_ms)
{
    sigset_t of_go, before;
    int failure;

    sigemptyset(&of_go);
    sigaddset(&of_go, SIGURG);
    pthread_sigmask(SIG_BLOCK, &of_go, &before);
    failure = wait_for_word(word, timeout_ms);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure;
}

void kvferry_signal_word(uint32_t *word)
{
    __atomic_store_n(word, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
