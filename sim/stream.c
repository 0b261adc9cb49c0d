/* One stream: its queue, its clock, and waiting for it.
 *
 *  1. A submitter waits until there is room for its operation.
 *  2. Submitting an operation adds its cost to the stream's clock, complete_at; nothing sleeps for that.
 *  3. A thread that waits for a place sleeps until its time by that clock, and then until the worker has got there.
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
        stream_set_awaited(stream, stream->executed + 1);
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

    stream->complete_at = (stream->complete_at > now ? stream->complete_at : now) + cost;
    stream->worked += cost;
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
        stream->complete_at = stream->complete_at > time ? stream->complete_at : time;
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
    return stream->executed == stream->submitted && sim_now() >= stream->complete_at;
}

int stream_wait(struct stream *stream, uint64_t place, int64_t time, int64_t timeout, int timed_out)
{
    int64_t now = sim_now(), deadline = timeout < 0 ? NEVER : now + timeout * 1000000;
    int result;

    stream->references++;
    stream_set_awaited(stream, place);
    while (stream->executed < place || now < time) {
        if (now >= deadline || sim_device_error(stream->device) != SIM_OK) {
            break;
        }
        if (now < time) {
            /* Not in waiters: nothing but an error of the device needs to wake this thread before that time. */
            int slack = sim_set_precise_timers();

            stream_sleep(&stream->done, time < deadline ? time : deadline);
            sim_restore_timers(slack);
        } else {
            stream_wait_for_progress(stream, deadline);
        }
        now = sim_now();
    }
    result = stream_result(stream, place);
    if (result == SIM_OK && (stream->executed < place || now < time)) {
        result = sim_fail(timed_out, "operation %llu of a stream of device %d is not complete after %lld ms",
                          (unsigned long long)place, stream->device, (long long)timeout);
    }
    stream_release(stream);
    return result;
}

void stream_set_awaited(struct stream *stream, uint64_t place)
{
    if (stream->awaited < place) {
        stream->awaited = place;
    }
    if (stream->executed < place && stream->worker != WORKER_RUNNING) {
        pthread_cond_signal(&stream->work);
    }
}

void stream_wait_for_progress(struct stream *stream, int64_t until)
{
    stream->references++;
    stream->waiters++;
    stream_sleep(&stream->done, until);
    stream->waiters--;
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

int stream_result(const struct stream *stream, uint64_t place)
{
    int trouble = sim_device_error(stream->device);

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
