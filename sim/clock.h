/* Time, and precise timers. */
#ifndef SIM_CLOCK_H
#define SIM_CLOCK_H

#include <stdint.h>

#define NEVER INT64_MAX

int64_t sim_now(void); /* nanoseconds, of the monotonic clock */

/* The kernel wakes this thread within 1 µs of the time that it asked for, not the usual 50 µs, until
 * sim_restore_timers is called with the result. */
int sim_set_precise_timers(void);
void sim_restore_timers(int before);

#endif
