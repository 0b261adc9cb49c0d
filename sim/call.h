/* What begins and ends each call of the API. */
#ifndef SIM_CALL_H
#define SIM_CALL_H

#include "device.h"

/* Takes the lock, counts the call, and checks what it needs. The caller releases the lock with sim_end, whatever the
 * result is. */
enum sim_needs { NEEDS_NOTHING, NEEDS_INIT, NEEDS_DEVICE };
int sim_begin(int call, enum sim_needs needs);

/* The same for calls that release something. They do so even where an injected fault is to fail them, or the device is
 * lost or broken: *deferred is then the error that they return after their work, by sim_end_release. */
int sim_begin_release(int call, enum sim_needs needs, int *deferred);
int sim_end_release(int result, int deferred);

/* Releases the lock, and turns a result into a code of the API. */
int sim_end(int result);

/* Fails where the address for a result is NULL. */
int sim_check_out(const void *out);

/* Takes the lock for a control function, which unlocks it itself; false in a child of fork(). */
bool sim_begin_control(void);

int sim_initialize(void);
int sim_finalize(void);

/* Calls a function of the program, without the lock. In it, calls of the API fail with SIM_NOT_PERMITTED. */
void sim_run_callback(void (*function)(void *), void *argument);

#endif
