/*
 * Log lines are written by a goroutine, which dies with the process. So exit() waits for the lines that are on their way.
 * It calls nothing in Go: a signal handler may have called it, amid a call of Go.
 */
#include "internal.h"

#include <time.h>

/* The longest that exit() waits, where the log cannot be written. */
#define LONGEST_FLUSH_MS 1000

static const uint32_t *unwritten; /* NULL where there is nobody to write */

void kvferry_watch_log(const uint32_t *counter)
{
    __atomic_store_n(&unwritten, counter, __ATOMIC_RELEASE);
}

void kvferry_forget_log(void)
{
    unwritten = NULL;
}

__attribute__((destructor)) static void flush_log(void)
{
    const uint32_t *left = __atomic_load_n(&unwritten, __ATOMIC_ACQUIRE);
    const struct timespec moment = {.tv_nsec = 1000000};
    int64_t end = kvferry_now_ms() + LONGEST_FLUSH_MS;

    while (left != NULL && __atomic_load_n(left, __ATOMIC_ACQUIRE) != 0 && kvferry_now_ms() < end) {
        nanosleep(&moment, NULL);
    }
}
