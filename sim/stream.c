/* Streams: copies on their way.
 *
 *  1. A copy is checked and queued, in queue.c. When it ends by the cost model is reckoned at once, and put on the
 *     stream's clock; nothing sleeps for that.
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

/* Makes a stream, and starts it. NULL where that cannot be. */
static struct stream *start_stream(bool blocking, void **handle)
{
    struct stream *stream = new_stream();

    if (stream != NULL) {
        stream->blocking = blocking;
        stream->references = 1;
        stream->handle = *handle = sim_handle(OBJECT_STREAM, stream);
        if (stream->queue != NULL && *handle != NULL && worker_start(stream)) {
            stream->references++;
            return stream;
        }
        if (*handle != NULL) {
            sim_drop_handle(*handle);
        }
        stream_release(stream);
    }
    sim_fail(SIM_NO_STREAM, "there is no memory, thread or handle for a stream");
    return NULL;
}

int sim_create_stream(bool blocking, void **out)
{
    if (out == NULL) {
        return sim_fail(SIM_INVALID, "a stream is to be returned at NULL");
    }
    return start_stream(blocking, out) != NULL ? SIM_OK : SIM_NO_STREAM;
}

/* The default stream of a device, if it has been used. */
static struct stream *find_default(int device)
{
    struct stream *stream;
    size_t position = 0;

    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        if (stream->is_default && stream->device == device) {
            return stream;
        }
    }
    return NULL;
}

static struct stream *default_stream(int *result)
{
    struct stream *stream = find_default(sim_current());
    void *handle;

    *result = SIM_OK;
    if (stream == NULL) {
        stream = start_stream(true, &handle);
        if (stream == NULL) {
            *result = SIM_NO_STREAM;
            return NULL;
        }
        stream->is_default = true;
    }
    return stream;
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

    if (handle == NULL && sim_face.default_stream) {
        return default_stream(result);
    }
    *result = SIM_OK;
    if (stream == NULL || stream->closed || stream->is_default) {
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

bool stream_is_complete(const struct stream *stream)
{
    return stream->executed == stream->submitted && sim_now() >= stream->busy_until;
}

int sim_query_stream(void *handle, bool *complete)
{
    int result;
    struct stream *stream = stream_find(handle, &result);

    if (stream == NULL || (stream->is_default && (result = stream_keep_order(stream)) != SIM_OK)) {
        return result;
    }
    *complete = stream_is_complete(stream);
    return stream_outcome(stream, stream->executed);
}

int sim_stream_device(void *handle, int *device)
{
    struct stream *stream = sim_object(OBJECT_STREAM, handle);

    if (stream == NULL || stream->closed || stream->is_default) {
        return sim_misuse(MISUSE_unknown_handle, SIM_NO_SUCH_HANDLE, "%p is no stream", handle);
    }
    *device = stream->device;
    return SIM_OK;
}

int sim_synchronize_device(enum sim_streams which)
{
    int device = sim_current(), result = SIM_OK;
    size_t position = 0;
    struct stream *stream;

    while (result == SIM_OK && (stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        if (stream->device == device && (which == STREAMS_ALL || stream->blocking)) {
            result = stream_wait(stream, stream->submitted, stream->busy_until, -1, SIM_STREAM_TIMEOUT);
        }
    }
    return result;
}

int sim_synchronize_stream(void *handle, int64_t timeout)
{
    int result;
    struct stream *stream = stream_find(handle, &result);

    if (stream == NULL || (stream->is_default && (result = stream_keep_order(stream)) != SIM_OK)) {
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

/* Has a stream end, and waits for that. */
static void end_stream(struct stream *stream)
{
    stream->closed = true;
    pthread_cond_signal(&stream->work);
    stream_wait(stream, stream->submitted, stream->busy_until, -1, SIM_STREAM_TIMEOUT);
    while (stream->executed < stream->submitted) { /* as the device is in trouble: nothing is moved any more */
        stream_wait_for_progress(stream, NEVER);
    }
    sim_drop_handle(stream->handle);
    stream_release(stream);
}

/* Waits for what is queued, as CANN does; a program should have waited for it before. */
int sim_destroy_stream(void *handle)
{
    int result;
    struct stream *stream = handle != NULL ? stream_find(handle, &result) : NULL;

    if (handle == NULL) {
        return sim_misuse(MISUSE_unknown_handle, SIM_NO_SUCH_HANDLE, "NULL is no stream to be destroyed");
    }
    if (stream == NULL) {
        return result;
    }
    if (!stream_is_complete(stream) && sim_trouble(stream->device) == SIM_OK) {
        result = sim_misuse(MISUSE_busy_destroy, SIM_OK, "a stream of device %d is destroyed before it is complete",
                            stream->device);
    }
    end_stream(stream);
    return result;
}

size_t sim_count_streams(void)
{
    size_t position = 0, count = 0;
    struct stream *stream;

    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        count += !stream->is_default;
    }
    return count;
}

/* What is queued does not run any more, as if the device were broken. */
size_t sim_drop_streams(int device)
{
    size_t position = 0, dropped = 0;
    struct stream *stream;

    sim.device[device].broken = SIM_BROKEN;
    sim_wake_all();
    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        if (stream->device == device && !stream->closed) {
            dropped += !stream->is_default;
            end_stream(stream);
        }
    }
    sim.device[device].broken = SIM_OK;
    return dropped;
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
