/* Injected faults: calls that fail, operations that fail or hang, and devices that are lost. */
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include "device.h"

/* Replaces all faults. The caller wakes all streams, as a device may be lost by it. Where tolerant, faults of functions
 * of the other library's API are skipped. */
int sim_parse_faults(const char *spec, bool tolerant);
int sim_call_fault(int call);

/* The result of the operation that a stream of that device executes next: 0, a reason or code, or FAULT_HANG. */
enum { FAULT_HANG = -1000 };
int sim_exec_fault(int device);

/* Counts an executed operation. True where the device is lost by it: the caller wakes all streams. */
bool sim_executed(int device);

void sim_release_hangs(void); /* the caller wakes all streams */

#endif
