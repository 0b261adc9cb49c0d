/* Time, and timers that are precise. */
#ifndef SIM_CLOCK_H
#define SIM_CLOCK_H

#include <stdint.h>

#define NEVER INT64_MAX

int64_t sim_now(void); /* nanoseconds, of the monotonic clock */

/* Has this thread woken within a microsecond of the time it asked for, not the usual 50, until sim_blunt_timers. */
int sim_sharpen_timers(void);
void sim_blunt_timers(int sharpened);

#endif
