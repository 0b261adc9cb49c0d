/* One stream: its queue, its clock, and waiting for it.
 *
 *  1. A stream has room for so many operations: who submits more waits for the first of them.
 *  2. When an operation ends by the cost model is reckoned at once, and put on the stream's clock; nothing sleeps for that.
 *  3. Who waits for a place in the stream sleeps until its time by that clock, and then until the worker has got there.
 */
#include "stream.h"

#include "handle.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void stream_release(struct stream *stream)
{
    if (--stream->references > 0) {
        return;
    }
    pthread_cond_destroy(&stream->work);
    pthread_cond_destroy(&stream->done);
    free(stream->queue);
    free(stream);
}

struct operation *stream_next_place(struct stream *stream, int *result)
{
    *result = SIM_OK;
    stream->references++;
    while (stream->submitted - stream->executed == STREAM_DEPTH && !stream->hanging) {
        stream_hurry(stream, stream->executed + 1);
        stream_wait_for_progress(stream, NEVER);
    }
    if (stream->closed) {
        *result = sim_fail(SIM_NO_SUCH_HANDLE, "the stream was destroyed meanwhile");
    } else if (stream->submitted - stream->executed == STREAM_DEPTH) {
        *result = sim_fail(SIM_STREAM_FULL, "the stream holds %d operations, and the first of them hangs",
                           STREAM_DEPTH);
    }
    stream_release(stream);
    return *result == SIM_OK ? &stream->queue[stream->submitted % STREAM_DEPTH] : NULL;
}

void stream_submit(struct stream *stream, int64_t cost)
{
    int64_t now = sim_now();

    stream->busy_until = (stream->busy_until > now ? stream->busy_until : now) + cost;
    stream->submitted++;
    if (stream->worker == WORKER_IDLE) {
        pthread_cond_signal(&stream->work);
    }
}

int stream_queue_wait(struct stream *stream, const void *other, uint64_t place, int64_t time)
{
    int result;
    struct operation *operation = stream_next_place(stream, &result);

    if (operation != NULL) {
        memset(operation, 0, sizeof *operation);
        operation->type = OPERATION_WAIT;
        operation->stream = other;
        operation->place = place;
        stream_submit(stream, 0);
        stream->busy_until = stream->busy_until > time ? stream->busy_until : time;
    }
    return result;
}

void operation_release(struct operation *operation)
{
    size_t i;

    for (i = 0; i < operation->count; i++) {
        sim_release_piece(&operation->pieces[i]);
    }
    if (operation->pieces != &operation->one) {
        free(operation->pieces);
    }
}

bool stream_is_complete(const struct stream *stream)
{
    return stream->executed == stream->submitted && sim_now() >= stream->busy_until;
}

int stream_wait(struct stream *stream, uint64_t place, int64_t time, int64_t timeout, int timed_out)
{
    int64_t now = sim_now(), deadline = timeout < 0 ? NEVER : now + timeout * 1000000;
    int result;

    stream->references++;
    stream_hurry(stream, place);
    while (stream->executed < place || now < time) {
        if (now >= deadline || sim_trouble(stream->device) != SIM_OK) {
            break;
        }
        if (now < time) {
            /* Not impatient: the worker need not wake us before that, only trouble with the device does. */
            int slack = sim_sharpen_timers();

            stream_sleep(&stream->done, time < deadline ? time : deadline);
            sim_blunt_timers(slack);
        } else {
            stream_wait_for_progress(stream, deadline);
        }
        now = sim_now();
    }
    result = stream_outcome(stream, place);
    if (result == SIM_OK && (stream->executed < place || now < time)) {
        result = sim_fail(timed_out, "operation %llu of a stream of device %d is not complete after %lld ms",
                          (unsigned long long)place, stream->device, (long long)timeout);
    }
    stream_release(stream);
    return result;
}

void stream_hurry(struct stream *stream, uint64_t place)
{
    if (stream->hurried < place) {
        stream->hurried = place;
    }
    if (stream->executed < place && stream->worker != WORKER_RUNNING) {
        pthread_cond_signal(&stream->work);
    }
}

void stream_wait_for_progress(struct stream *stream, int64_t until)
{
    stream->references++;
    stream->impatient++;
    stream_sleep(&stream->done, until);
    stream->impatient--;
    stream_release(stream);
}

void stream_sleep(pthread_cond_t *condition, int64_t until)
{
    struct timespec t = {(time_t)(until / 1000000000), (long)(until % 1000000000)};

    if (until == NEVER) {
        pthread_cond_wait(condition, &sim.lock);
    } else {
        pthread_cond_timedwait(condition, &sim.lock, &t);
    }
}

int stream_outcome(const struct stream *stream, uint64_t place)
{
    int trouble = sim_trouble(stream->device);

    if (trouble != SIM_OK) {
        return trouble;
    }
    if (stream->failure != SIM_OK && stream->failed_at < place) {
        return sim_fail(stream->failure, "operation %llu of a stream of device %d failed",
                        (unsigned long long)stream->failed_at + 1, stream->device);
    }
    return SIM_OK;
}

void stream_wake_all(void)
{
    struct stream *stream;
    size_t position = 0;

    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        pthread_cond_broadcast(&stream->work);
        pthread_cond_broadcast(&stream->done);
    }
}
