/* One stream: its queue, its clock, and waiting for it.
 *
 * A place in a stream is behind so many of its operations. */
#ifndef SIM_STREAM_H
#define SIM_STREAM_H

#include "clock.h"
#include "copy.h"

enum { STREAM_DEPTH = 1024 }; /* operations that a stream holds; who submits more waits */

struct operation {
    enum { OPERATION_COPY, OPERATION_WAIT, OPERATION_CALL } type;
    struct piece *pieces; /* of a copy: `one`, or an array of its own */
    struct piece one;
    size_t count;
    const void *stream; /* of a wait: where, and for which place */
    uint64_t place;
    void (*function)(void *); /* of a call, and not before a time */
    void *argument;
    int64_t time;
};

struct stream {
    int device;
    const void *handle;
    bool is_default; /* of its device: the one that NULL is. The simulator's own, made when it is first used */
    bool blocking;   /* ordered with the default stream, as that itself is */
    int references;  /* the handle's, the worker's and those of who waits */
    uint64_t number; /* of all streams, from 1 */
    bool closed;     /* it is being destroyed */
    bool hanging;
    struct operation *queue; /* the n-th operation is at n % STREAM_DEPTH */
    uint64_t submitted, executed;
    uint64_t hurried;   /* the place up to which something waits */
    int64_t busy_until; /* when all that is submitted will be complete, by the cost model */
    int failure;        /* of the first operation that failed */
    uint64_t failed_at; /* and its number */
    enum { WORKER_IDLE, WORKER_NAPPING, WORKER_RUNNING } worker; /* an idle one must be woken, one that naps need not */
    pthread_cond_t work; /* for the worker */
    pthread_cond_t done; /* for those that wait for it, who are counted in impatient */
    int impatient;
};

/* Takes one of the references. */
void stream_release(struct stream *stream);

/* Waits until there is a place for an operation, and returns it. NULL and a reason where there will be none. */
struct operation *stream_next_place(struct stream *stream, int *result);

/* Queues that a stream waits for a place in another, and for its time. */
int stream_queue_wait(struct stream *stream, const void *other, uint64_t place, int64_t time);

bool stream_is_complete(const struct stream *stream);

/* Makes the operation at that place the worker's. cost is how long it takes, in nanoseconds. */
void stream_submit(struct stream *stream, int64_t cost);

/* Waits until a stream has got to a place, and its time has come. The timeout is in milliseconds, -1 is none; timed_out
 * is the reason that is returned behind it. */
int stream_wait(struct stream *stream, uint64_t place, int64_t time, int64_t timeout, int timed_out);

/* What came of the operations before a place. */
int stream_outcome(const struct stream *stream, uint64_t place);

/* Lets the worker get to a place without holding anything back. */
void stream_hurry(struct stream *stream, uint64_t place);

/* Waits until the worker has got somewhere, or until a time. */
void stream_wait_for_progress(struct stream *stream, int64_t until);

/* Waits on a condition until a time; the lock is let go. */
void stream_sleep(pthread_cond_t *condition, int64_t until);

void operation_release(struct operation *operation);

void stream_wake_all(void); /* after a device was lost or broken, or hangs were released */

#endif
