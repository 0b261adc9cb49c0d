/* The devices, and the current device of each thread. */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include "error.h"

/* A device is in use while it is retained more often than released. sim_release_device has done its work where it
 * returns SIM_LOST. *last tells whether that was the last release: the device is then no thread's current one. */
int sim_retain_device(int device);
int sim_release_device(int device, bool *last);

/* A thread's current device; none where it is all zero. */
struct sim_current {
    int device; /* plus one */
    unsigned epoch; /* of the device, when it became current */
};
struct sim_current sim_current_for(int device); /* that device, from now on */
struct sim_current sim_get_current(void);
void sim_set_current(struct sim_current current);
int sim_device_of(struct sim_current current); /* -1 where there is none, or it has been released */
int sim_current(void);                         /* this thread's device, or -1 */

int sim_check_device(int device);
int sim_device_error(int device); /* why nothing works on a device: SIM_LOST, or the result that broke it; or SIM_OK */

/* Gives this thread's device access to the memory of another, until one of the two is released for the last time. */
int sim_enable_peer(int peer);
bool sim_is_peer(int device, int peer); /* whether a device has access to the memory of another */

#endif
