/* Simulated devices, without the API of any runtime: memory, current devices, streams, events, faults and counters.
 *
 * ascendcl.c has the API of AscendCL, cuda.c and cuda_*.c that of CUDA's driver. A library has one of them, whose
 * sim_api says how it differs.
 *
 * A file includes only its own header and those of the lines above its own, so that calls go one way. `make lint`
 * checks that.
 *
 *   state                           the lock, the counters, how the API differs
 *   error clock handle              reasons and their texts; time; numbers that stand for objects
 *   device cost                     the devices and each thread's current one; what copies take
 *   faults                          what is to fail
 *   settings                        the environment variables
 *   call                            what begins and ends each call of the API
 *   memory                          device memory and page-locked memory
 *   virtual                         ranges into which device memory is mapped
 *   copy                            checking a copy, moving its bytes
 *   stream                          one stream: its queue, its clock, waiting for it
 *   worker                          the thread that executes what is queued
 *   streams                         all streams: making, finding and ending them, and the default stream
 *   submit event                    what streams are given; places in them
 *   report                          what was leaked, misused and called
 *   kvferry_sim ascendcl cuda_api   the functions for tests; AscendCL; what the files of CUDA share
 *   cuda cuda_memory cuda_copy cuda_stream cuda_module
 *
 * One lock, sim.lock, guards everything. Each function of the API takes it with sim_begin and releases it with sim_end.
 * All other functions here are called with the lock held. They release it while bytes are moved and a thread waits.
 *
 * A result is 0, or a negative SIM_ reason that sim_end turns into a code of the API, or a positive code of the API
 * that a fault named. A function that returns a reason has called sim_fail with a text that says what is wrong. */
#ifndef SIM_STATE_H
#define SIM_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_NAME "kvferry simulator"
#define SIM_EXPORT __attribute__((visibility("default")))

enum {
    SIM_DEVICES_MAX = 64,
    SIM_CALLS_MAX = 80, /* functions of an API */
    SIM_MESSAGE_MAX = 256,
};

struct sim_api {
    const char *runtime;       /* its name */
    const char *prefix;        /* of its functions' names */
    const char *report_suffix; /* of the name of the file that a report is written to */
    const char *const *calls;  /* the functions that are counted and that can be made to fail */
    int call_count;
    const int *codes;     /* of each reason, at its number without the sign */
    size_t alignment;     /* of both ends of a copy within a device */
    bool failures_spread; /* an operation that fails breaks its whole device */
    bool default_stream;  /* NULL is a stream */
};

extern const struct sim_api sim_api;

/* Errors of the program, by the names that the report gives them. */
#define SIM_MISUSES(MISUSE)                                                                                        \
    MISUSE(double_free) MISUSE(use_after_free) MISUSE(busy_free) MISUSE(busy_destroy) MISUSE(out_of_bounds)        \
    MISUSE(wrong_pointer) MISUSE(unknown_handle) MISUSE(no_device_set) MISUSE(other_device)                        \
    MISUSE(reset_without_set) MISUSE(left_behind)

#define SIM_MISUSE_NUMBER(name) MISUSE_##name,
enum sim_misuse { SIM_MISUSES(SIM_MISUSE_NUMBER) MISUSES };

/* The kinds of copy, as the cost model and the report know them. */
enum sim_kind { KIND_H2H, KIND_H2D, KIND_D2H, KIND_D2D, KINDS };

struct device {
    bool lost;
    int broken;        /* the result of the operation that broke it; SIM_OK where none did */
    long retained;     /* how often it was retained and not yet released */
    unsigned epoch;    /* rises at the last release: a thread's current device of a former epoch is none */
    long sets, resets; /* counted for the report */
    uint64_t peers;    /* a bit for each device whose memory this one may access */
};

struct counters {
    uint64_t calls[SIM_CALLS_MAX], misuses[MISUSES];
    uint64_t copies[KINDS], copied_bytes[KINDS], pageable_copies, executed, faults;
    int64_t worked; /* nanoseconds that all copies of streams take, by the cost model */
};

struct sim {
    pthread_mutex_t lock;
    bool configured, initialized;
    int devices;
    bool no_peers; /* no device can access the memory of another */
    struct device device[SIM_DEVICES_MAX];
    bool adversarial;
    uint64_t seed;
    struct counters counters;
    unsigned hang_releases;
};

extern struct sim sim;

/* True in a child of fork(): nothing works there, and another thread may have held the lock. */
extern bool sim_forked;

#endif
