/* One stream: its queue, its clock, and waiting for it.
 *
 * A place in a stream is the number of its operations before it. */
#ifndef SIM_STREAM_H
#define SIM_STREAM_H

#include "clock.h"
#include "copy.h"

enum { STREAM_DEPTH = 1024 }; /* operations that a stream holds; a submitter of more waits */

struct operation {
    enum { OPERATION_COPY, OPERATION_WAIT, OPERATION_CALL } type;
    struct piece *pieces; /* of a copy: `one`, or an array of its own */
    struct piece one;
    size_t count;
    int failure;        /* of a copy that is to fail when it is executed */
    const void *stream; /* of a wait: for which place of which stream */
    uint64_t place;
    void (*function)(void *); /* of a call, not before `time` */
    void *argument;
    int64_t time;
};

struct stream {
    int device;
    const void *handle;
    bool is_default; /* the default stream of its device, which NULL stands for; made when it is first used */
    bool blocking;   /* ordered with the default stream; true of that, too */
    int references;  /* of the handle, the worker, and each thread that waits */
    uint64_t number; /* of all streams, from 1 */
    bool closed;     /* it is being destroyed */
    bool hanging;
    struct operation *queue; /* the n-th operation is at n % STREAM_DEPTH */
    uint64_t submitted, executed;
    uint64_t awaited;    /* the last place that a thread or stream waits for */
    int64_t complete_at; /* when all submitted operations are complete, by the cost model */
    int64_t worked;      /* what all submitted operations take together, by the cost model */
    int failure;         /* the result of the first operation that failed */
    uint64_t failed_at;  /* and its number */
    enum { WORKER_IDLE, WORKER_PAUSING, WORKER_RUNNING } worker; /* only an idle one must be woken */
    pthread_cond_t work; /* for the worker */
    pthread_cond_t done; /* for threads that wait for progress */
    int waiters; /* on done, for progress */
};

/* Drops a reference; the last one frees the stream. */
void stream_release(struct stream *stream);

/* Waits until there is room for an operation, and returns it. NULL and a reason where the stream ends or hangs. */
struct operation *stream_next_place(struct stream *stream, int *result);

/* Queues a wait for a place in another stream, and for its time. */
int stream_queue_wait(struct stream *stream, const void *other, uint64_t place, int64_t time);

bool stream_is_complete(const struct stream *stream);

/* Submits the operation that stream_next_place returned. cost is in nanoseconds. */
void stream_submit(struct stream *stream, int64_t cost);

/* Waits until a stream has got to a place, and its time has come. The timeout is in milliseconds, -1 is none; timed_out
 * is the reason that is returned after it. */
int stream_wait(struct stream *stream, uint64_t place, int64_t time, int64_t timeout, int timed_out);

/* The result of the operations before a place. */
int stream_result(const struct stream *stream, uint64_t place);

/* Tells the worker not to delay operations before a place. */
void stream_set_awaited(struct stream *stream, uint64_t place);

/* Waits until the worker has executed an operation, or until a time. */
void stream_wait_for_progress(struct stream *stream, int64_t until);

/* Waits on a condition until a time, without the lock. */
void stream_sleep(pthread_cond_t *condition, int64_t until);

void operation_release(struct operation *operation);

void stream_wake_all(void); /* after a device was lost or broken, or hangs were released */

#endif
