/* Control of the simulated devices, for tests and for integrators.
 *
 * The simulator is a libascendcl.so and a libcuda.so.1, each with devices of its own. A program looks these functions
 * up in the library that it opened, by dlsym; no real AscendCL or CUDA has them. They control the devices of that
 * library alone, as its environment variables do.
 *
 * Any thread may call any of them at any time, also before aclInit or cuInit. In a child of fork() they do nothing:
 * those that return a number return -1 or 0. */
#ifndef KVFERRY_SIM_H
#define KVFERRY_SIM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Replaces the injected faults, as KVFERRY_SIM_FAULTS does at the start, and counts calls from 1 again.
 * spec is a list of faults separated by commas; NULL or "" leaves none. N counts from 1; a "+" at the end of a fault
 * means the N-th and all after it.
 *
 *   FUNCTION:N          the N-th call of that function, by the name that the library exports, fails: with 507899
 *                       (driver error), and in CUDA with 999 (unknown)
 *   FUNCTION:N=CODE     the same with another code. A function that releases something (free, destroy, reset) does so
 *                       although it fails: it must not be called again
 *   exec:N              the N-th operation that is executed, on whichever stream, fails: its bytes are not moved. With
 *                       507013 (DMA error), which all waits for it and for later operations of its stream return; in
 *                       CUDA with 700 (illegal address), which breaks the context: from then on all calls that need it
 *                       fail with that, and no queued operation is executed
 *   exec:N=CODE         the same with another code
 *   exec:N=hang         the N-th operation that is executed does not end before kvferry_sim_release_hangs
 *   lost:D@N            device D is lost after N operations executed on it, N from 0: those queued and all later calls
 *                       on it fail, with 507010 (lost heartbeat) or 46 (unavailable); calls that release something do
 *                       so although they fail
 *
 * An operation is an asynchronous copy; a batched copy is one. Devices that were lost and contexts that were broken
 * work again, but a stream on which an operation failed must not be used any more. Returns 0, or -1 where spec is not
 * understood: the faults are then as before, and kvferry_sim_message says what is wrong. At most 64 faults.
 *
 * The variable is for both libraries: each skips its faults that name functions of the other (acl..., cu...), and takes
 * exec and lost as its own. */
int kvferry_sim_faults(const char *spec);

/* Has the operations that hang continue, and removes the faults that would have others hang. */
void kvferry_sim_release_hangs(void);

/* Turns the adversarial scheduler on, with that seed, or off: KVFERRY_SIM_SEED. 0, or -1 in a child of fork(). */
int kvferry_sim_seed(unsigned long long seed, int on);

/* Lets devices have access to each other's memory, or not: KVFERRY_SIM_PEERS. 0 also ends the access that was enabled
 * before. Returns 0, or -1 in a child of fork(). */
int kvferry_sim_peers(int on);

/* Sets what operations cost, as KVFERRY_SIM_COST does: "KIND=GBPS/MICROSECONDS" separated by commas, with the kinds
 * d2h, h2d, d2d and pageable; "batch=MICROSECONDS" for each further element of a batched copy, "batch-h2d" for those
 * of one kind; "row=MICROSECONDS" for each further row of a matrix; "kernel=MICROSECONDS" for a kernel that copies; or
 * the name of a profile, which later costs change in part. What is not named gets its default, NULL or "" gives all of
 * them; "0" makes everything free. 0, or -1 where spec is not understood: the costs are then as before. Operations that
 * are submitted later have the new costs. */
int kvferry_sim_cost(const char *spec);

/* Returns the text of the last call that failed on this thread, of the runtime or of these functions, and forgets it.
 * NULL where there is none. Valid until the thread's next call. */
const char *kvferry_sim_message(void);

/* Writes the report that KVFERRY_SIM_REPORT names, as of now: JSON in a string of at most size bytes with its NUL, cut
 * off where it is longer. Returns the length of the whole, without the NUL; 0 in a child of fork(). */
size_t kvferry_sim_report(char *out, size_t size);

/* Zeroes what the report counts: calls, copies, operations, faults, misuse, and how often devices were set and reset.
 * Leaks are no counts: they stay. */
void kvferry_sim_reset_counters(void);

#ifdef __cplusplus
}
#endif

#endif
