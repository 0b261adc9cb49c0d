/* Simulated devices, without the face of any runtime: memory, current devices, streams, events, faults and counters.
 *
 * A face is a runtime's functions, in files of its name: ascendcl.c, and cuda.c with cuda_*.c. A library has one of
 * them, which says in sim_face what is different with it.
 *
 * One lock, sim.lock, guards everything. A face takes it with sim_begin and gives it back with sim_end around each
 * call; all other functions here are called with it held. It is let go while bytes are moved and while anything waits.
 *
 * A result is 0, or a negative SIM_ reason that the face turns into its own code, or a positive code of the face's own
 * that a fault named. Who returns a reason has said in sim_fail's text what is wrong. */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_NAME "kvferry simulator"
#define SIM_EXPORT __attribute__((visibility("default")))

enum {
    SIM_DEVICES_MAX = 64,
    SIM_CALLS_MAX = 64, /* functions of a face */
    SIM_MESSAGE_MAX = 256,
};

enum sim_reason {
    SIM_OK = 0,
    SIM_INVALID = -1,
    SIM_UNINITIALIZED = -2,
    SIM_REPEATED = -3,
    SIM_NO_SUCH_DEVICE = -4,
    SIM_NO_DEVICE_SET = -5,
    SIM_OTHER_DEVICE = -6,
    SIM_UNALIGNED = -7,
    SIM_NO_SUCH_HANDLE = -8,
    SIM_UNSUPPORTED = -9,
    SIM_NO_MEMORY = -10,
    SIM_NO_STREAM = -11,
    SIM_STREAM_FULL = -12,
    SIM_STREAM_TIMEOUT = -13,
    SIM_EVENT_TIMEOUT = -14,
    SIM_LOST = -15,
    SIM_BROKEN = -16, /* what an injected fault is, where it names no code */
    SIM_DMA_ERROR = -17,
    SIM_FORKED = -18,
    SIM_NOT_PERMITTED = -19, /* called by a function that a stream calls */
    SIM_REGISTERED = -20,    /* page-locked already */
    SIM_UNREGISTERED = -21,  /* not page-locked */
    SIM_OTHER_MEMORY = -22,  /* of another device */
    SIM_REASONS = 23,
};

struct sim_face {
    const char *runtime;       /* what it is called */
    const char *prefix;        /* of its functions */
    const char *report_suffix; /* of the file that a report is written to */
    const char *const *calls;  /* the functions that are counted and that can be made to fail */
    int call_count;
    const int *codes;     /* of each reason, at its number without the sign */
    size_t alignment;     /* of both ends of a copy within a device */
    bool failures_spread; /* an operation that fails breaks all of its device */
    bool default_stream;  /* NULL is a stream */
};

extern const struct sim_face sim_face;

/* What a program did that it must not do, by the names that the report gives it. */
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
    int broken;        /* what an operation failed with, where that spreads */
    long held;         /* sets not yet taken back */
    unsigned epoch;    /* goes up when the last one is: threads that had the device set have none then */
    long sets, resets; /* counted for the report */
    uint64_t peers;    /* a bit for each device whose memory this one may access */
};

/* What a copy takes, in nanoseconds. */
struct price {
    double per_byte;
    int64_t latency;
};

struct cost {
    struct price kinds[KINDS], pageable;
    int64_t batch_element; /* each further one of a batched copy */
};

struct counters {
    uint64_t calls[SIM_CALLS_MAX], misuses[MISUSES];
    uint64_t copies[KINDS], copied_bytes[KINDS], pageable_copies, executed, faults;
};

struct sim {
    pthread_mutex_t lock;
    bool configured, initialized;
    int devices;
    struct device device[SIM_DEVICES_MAX];
    bool adversarial;
    uint64_t seed;
    struct cost cost;
    struct counters counters;
    unsigned hang_releases;
};

extern struct sim sim;

/* True in a child of fork(): nothing works there, and the lock may be held for ever. */
extern bool sim_forked;

/* device.c */

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

int sim_fail(int reason, const char *format, ...) __attribute__((format(printf, 2, 3)));
int sim_misuse(enum sim_misuse misuse, int reason, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* This thread's last error text, which is then forgotten; NULL where there is none. Valid until the thread's next. */
const char *sim_message(void);

/* Ends a text at the first separator and returns what is behind it; NULL where there is none. */
char *sim_cut(char *text, const char *separator);

int sim_initialize(void);
int sim_finalize(void);

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

/* Calls a function of the program, without the lock; it may call none of the face's that need anything. */
void sim_call_back(void (*function)(void *), void *argument);

int64_t sim_now(void); /* nanoseconds, of the monotonic clock */

/* Has this thread woken within a microsecond of the time it asked for, not the usual 50, until sim_blunt_timers. */
int sim_sharpen_timers(void);
void sim_blunt_timers(int sharpened);

/* handle.c */

enum sim_object { OBJECT_NONE, OBJECT_STREAM, OBJECT_EVENT, OBJECT_PIECE };
void *sim_handle(enum sim_object type, void *object); /* NULL where there are too many */
void *sim_object(enum sim_object type, const void *handle); /* NULL where it is none */
void *sim_next_object(enum sim_object type, size_t *position); /* goes through all, from position 0; NULL at the end */
void sim_drop_handle(const void *handle);

/* cost.c */

int64_t sim_copy_cost(enum sim_kind kind, bool pageable, size_t size, size_t elements); /* nanoseconds */
int sim_parse_cost(const char *spec);

/* stream.c, queue.c and event.c */

/* One that is blocking is ordered with the default stream. */
int sim_create_stream(bool blocking, void **out);
int sim_destroy_stream(void *stream);
int sim_copy_async(void *to, size_t room, const void *from, size_t size, int claimed, void *stream);

struct batch {
    void **to;
    size_t *rooms;
    void **from;
    size_t *sizes;
    size_t count;
    const bool *early; /* whose source is read at once; NULL: none */
};

/* In no order; all in one direction where that is claimed. *failed is the element that was refused, or SIZE_MAX. */
int sim_copy_batch(const struct batch *batch, int claimed, size_t *failed, void *stream);

int sim_call_in_stream(void *stream, void (*function)(void *), void *argument);
int sim_query_stream(void *stream, bool *complete);
int sim_stream_device(void *stream, int *device); /* whichever device this thread has */

/* Waits for all that this thread's device has been given, or for what orders itself with the default stream. */
enum sim_streams { STREAMS_ALL, STREAMS_BLOCKING };
int sim_synchronize_device(enum sim_streams which);

size_t sim_count_streams(void);      /* without default streams */
size_t sim_drop_streams(int device); /* ends all of a device; returns how many there were */
size_t sim_drop_events(int device);

int sim_create_event(void **out);
int sim_destroy_event(void *event);
int sim_record_event(void *event, void *stream);
int sim_stream_wait_event(void *stream, void *event);
int sim_query_event(void *event, bool *complete);

/* Timeouts are in milliseconds; -1 is none. */
int sim_synchronize_stream(void *stream, int64_t timeout);
int sim_synchronize_event(void *event, int64_t timeout);

void sim_wake_all(void); /* after a device was lost or hangs were released */

/* faults.c */

/* Where others are tolerated, faults of functions of another face are passed over. */
int sim_parse_faults(const char *spec, bool tolerant);
int sim_call_fault(int call);

/* What is to become of the operation that a stream of that device executes next: 0, a reason, or FAULT_HANG. */
enum { FAULT_HANG = -1000 };
int sim_exec_fault(int device);
void sim_executed(int device); /* counts an operation that has ended */
void sim_release_hangs(void);

/* report.c */

size_t sim_write_report(char *out, size_t size);

#endif
