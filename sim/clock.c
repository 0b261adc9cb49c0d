/* Time, and precise timers. */
#include "clock.h"

#include <sys/prctl.h>
#include <time.h>

int64_t sim_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int sim_set_precise_timers(void)
{
    int before = prctl(PR_GET_TIMERSLACK, 0ul, 0ul, 0ul, 0ul);

    prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    return before;
}

void sim_restore_timers(int before)
{
    prctl(PR_SET_TIMERSLACK, (unsigned long)before, 0ul, 0ul, 0ul);
}
