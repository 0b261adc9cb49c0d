/* The devices, and which one a thread has for its own. */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include "error.h"

/* A device is in use while it is held: its counts are one more and one less. SIM_LOST is returned by sim_unhold where
 * it has done its work. *last tells whether nobody holds the device any more: no thread has it for its own then. */
int sim_hold(int device);
int sim_unhold(int device, bool *last);

/* Which device a thread has for its own, and since when; none where it is all zero. */
struct sim_current {
    int device; /* plus one */
    unsigned epoch;
};
struct sim_current sim_held_device(int device); /* what a thread has from now on that is given that device */
struct sim_current sim_get_current(void);
void sim_set_current(struct sim_current current);
int sim_device_of(struct sim_current current); /* -1 where there is none, or nobody holds it any more */
int sim_current(void);                         /* this thread's */

int sim_check_device(int device);
int sim_trouble(int device); /* why nothing works on a device: SIM_LOST, or what it is broken by; or SIM_OK */
int sim_enable_peer(int peer);

#endif
