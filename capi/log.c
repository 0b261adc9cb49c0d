/*
 * A goroutine writes the log lines, and ends with the process. So exit() waits until the queued lines are written. It does not
 * call Go: a signal handler may have called exit() during a call of Go.
 */
#include "internal.h"

#include <time.h>

/* The longest time that exit() waits if the log cannot be written. */
#define LONGEST_FLUSH_MS 1000

static const uint32_t *unwritten; /* NULL if there is no goroutine that writes */

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
