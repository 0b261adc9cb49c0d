/* What begins and ends each call of a face. */
#ifndef SIM_CALL_H
#define SIM_CALL_H

#include "device.h"

/* Takes the lock, counts the call, and checks what every call needs. The lock must be given back with sim_end whatever
 * the result is. */
enum sim_needs { NEEDS_NOTHING, NEEDS_INIT, NEEDS_DEVICE };
int sim_begin(int call, enum sim_needs needs);

/* The same for calls that give something back, which they do even where they are to fail, by a fault that was injected
 * or on a device that is lost or broken: *later is what they must return then, which sim_given_back sees to. */
int sim_begin_giving_back(int call, enum sim_needs needs, int *later);
int sim_given_back(int result, int later);

/* Gives the lock back, and makes a code of the face of a result. */
int sim_end(int result);

/* Refuses NULL for where a result is to be returned. */
int sim_check_out(const void *out);

/* Takes the lock for a control function; false in a child of fork(). */
bool sim_control(void);

int sim_initialize(void);
int sim_finalize(void);

/* Calls a function of the program, without the lock; it may call none of the face's that need anything. */
void sim_call_back(void (*function)(void *), void *argument);

#endif
