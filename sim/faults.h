/* Faults on purpose: calls that fail, operations that fail or hang, and devices that are lost. */
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include "device.h"

/* Streams must be woken behind that, as what they wait for may be lost. Where others are tolerated, faults of functions of another face are passed over. */
int sim_parse_faults(const char *spec, bool tolerant);
int sim_call_fault(int call);

/* What is to become of the operation that a stream of that device executes next: 0, a reason, or FAULT_HANG. */
enum { FAULT_HANG = -1000 };
int sim_exec_fault(int device);
bool sim_executed(int device); /* counts an operation that has ended; true where the device was lost by it */
void sim_release_hangs(void); /* those that hang must be woken */

#endif
