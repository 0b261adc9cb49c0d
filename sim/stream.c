/* Streams: copies on their way.
 *
 *  1. A copy is checked and queued. When it ends by the cost model is reckoned at once, and put on the stream's clock;
 *     nothing sleeps for that.
 *  2. The stream's worker, in worker.c, executes it.
 *  3. Who waits for a place in the stream sleeps until its time by that clock, and then until the worker has got there.
 *  4. A stream that is destroyed is waited for.
 */
#include "stream.h"

#include <stdlib.h>
#include <time.h>

static uint64_t streams_made;

static struct stream *new_stream(void)
{
    struct stream *stream = calloc(1, sizeof *stream);
    pthread_condattr_t attributes;

    if (stream == NULL) {
        return NULL;
    }
    stream->queue = calloc(STREAM_DEPTH, sizeof *stream->queue);
    stream->device = sim_current();
    stream->number = ++streams_made;
    stream->worker = WORKER_RUNNING;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&stream->work, &attributes);
    pthread_cond_init(&stream->done, &attributes);
    pthread_condattr_destroy(&attributes);
    return stream;
}

int sim_create_stream(void **out)
{
    struct stream *stream;

    if (out == NULL) {
        return sim_fail(SIM_INVALID, "a stream is to be returned at NULL");
    }
    stream = new_stream();
    if (stream != NULL) {
        stream->references = 1;
        *out = sim_handle(OBJECT_STREAM, stream);
        if (stream->queue != NULL && *out != NULL && worker_start(stream)) {
            stream->references++;
            return SIM_OK;
        }
        if (*out != NULL) {
            sim_drop_handle(*out);
        }
        stream_release(stream);
    }
    return sim_fail(SIM_NO_STREAM, "there is no memory, thread or handle for a stream");
}

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

struct stream *stream_find(const void *handle, int *result)
{
    struct stream *stream = sim_object(OBJECT_STREAM, handle);

    *result = SIM_OK;
    if (stream == NULL || stream->closed) {
        *result = sim_misuse(MISUSE_unknown_handle, SIM_NO_SUCH_HANDLE, "%p is no stream", handle);
    } else if (stream->device != sim_current()) {
        *result = sim_misuse(MISUSE_other_device, SIM_OTHER_DEVICE, "a stream of device %d, and device %d is set",
                             stream->device, sim_current());
    }
    return *result == SIM_OK ? stream : NULL;
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

static struct operation *new_copy(struct stream *stream, size_t count, int *result)
{
    struct operation *operation = stream_next_place(stream, result);

    if (operation == NULL) {
        return NULL;
    }
    operation->type = OPERATION_COPY;
    operation->count = count;
    operation->pieces = count == 1 ? &operation->one : calloc(count, sizeof *operation->pieces);
    if (operation->pieces == NULL) {
        *result = sim_fail(SIM_NO_MEMORY, "there is no memory for a batch of %zu copies", count);
        return NULL;
    }
    return operation;
}

/* Submits a copy that was prepared. Where pageable memory takes part, it is complete when this returns. */
static int submit_copy(struct stream *stream, const struct operation *operation, enum sim_kind kind)
{
    size_t size = 0, i;
    bool pageable = false;

    for (i = 0; i < operation->count; i++) {
        size += operation->pieces[i].size;
        pageable = pageable || sim_is_pageable(&operation->pieces[i]);
    }
    sim_count_copy(kind, pageable, size);
    stream_submit(stream, sim_copy_cost(kind, pageable, size, operation->count));
    return pageable ? stream_wait(stream, stream->submitted, stream->busy_until, -1, SIM_STREAM_TIMEOUT) : SIM_OK;
}

int sim_copy_batch(const struct batch *batch, int claimed, size_t *failed, void *handle)
{
    int result;
    struct stream *stream = stream_find(handle, &result);
    struct operation *operation = stream != NULL ? new_copy(stream, batch->count, &result) : NULL;
    enum sim_kind kind = KIND_H2H;
    size_t i;

    *failed = SIZE_MAX;
    if (operation == NULL) {
        return result;
    }
    for (i = 0; i < batch->count && result == SIM_OK; i++) {
        result = sim_prepare(&operation->pieces[i], batch->to[i], batch->rooms[i], batch->from[i], batch->sizes[i],
                             claimed, stream->device, &kind);
        if (result == SIM_OK && kind == KIND_H2H) {
            sim_release_piece(&operation->pieces[i]);
            result = sim_fail(SIM_UNSUPPORTED, "streams do not copy from host to host");
        }
    }
    if (result == SIM_OK) {
        return submit_copy(stream, operation, kind);
    }
    *failed = i - 1;
    operation->count = i - 1; /* those that have users more */
    operation_release(operation);
    return result;
}

int sim_copy_async(void *to, size_t room, const void *from, size_t size, int claimed, void *stream)
{
    void *source = (void *)from;
    struct batch batch = {&to, &room, &source, &size, 1};
    size_t failed;

    return sim_copy_batch(&batch, claimed, &failed, stream);
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

int sim_synchronize_stream(void *handle, int64_t timeout)
{
    int result;
    struct stream *stream = stream_find(handle, &result);

    if (stream == NULL) {
        return result;
    }
    return stream_wait(stream, stream->submitted, stream->busy_until, timeout, SIM_STREAM_TIMEOUT);
}

int stream_wait(struct stream *stream, uint64_t place, int64_t time, int64_t timeout, int timed_out)
{
    int64_t now = sim_now(), deadline = timeout < 0 ? NEVER : now + timeout * 1000000;
    int result;

    stream->references++;
    stream_hurry(stream, place);
    while (stream->executed < place || now < time) {
        if (now >= deadline || sim.device[stream->device].lost) {
            break;
        }
        if (now < time) {
            /* Not impatient: the worker need not wake us before that, only the loss of the device does. */
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
    if (sim.device[stream->device].lost) {
        return sim_fail(SIM_LOST, "device %d is lost", stream->device);
    }
    if (stream->failure != SIM_OK && stream->failed_at < place) {
        return sim_fail(stream->failure, "operation %llu of a stream of device %d failed",
                        (unsigned long long)stream->failed_at + 1, stream->device);
    }
    return SIM_OK;
}

/* Waits for what is queued, as CANN does; a program should have waited for it before. */
int sim_destroy_stream(void *handle)
{
    int result;
    struct stream *stream = stream_find(handle, &result);

    if (stream == NULL) {
        return result;
    }
    if (stream->executed < stream->submitted || sim_now() < stream->busy_until) {
        result = sim_misuse(MISUSE_busy_destroy, SIM_OK, "a stream of device %d is destroyed before it is complete",
                            stream->device);
    }
    stream->closed = true;
    pthread_cond_signal(&stream->work);
    stream_wait(stream, stream->submitted, stream->busy_until, -1, SIM_STREAM_TIMEOUT);
    while (stream->executed < stream->submitted) { /* as the device was lost: nothing is moved any more */
        stream_wait_for_progress(stream, NEVER);
    }
    sim_drop_handle(handle);
    stream_release(stream);
    return result;
}

void sim_wake_all(void)
{
    struct stream *stream;
    size_t position = 0;

    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        pthread_cond_broadcast(&stream->work);
        pthread_cond_broadcast(&stream->done);
    }
}
