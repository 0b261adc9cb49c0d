/* All streams.
 *
 * The default stream of a device is made when it is first used. Destroying a stream waits for what is queued in it. */
#include "streams.h"

#include "handle.h"
#include "worker.h"

#include <stdlib.h>

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

/* Makes a stream, and starts its worker. NULL where there is no memory, thread or handle. */
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

struct stream *stream_find(const void *handle, int *result)
{
    struct stream *stream = sim_object(OBJECT_STREAM, handle);

    if (handle == NULL && sim_api.default_stream) {
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

int stream_keep_order(struct stream *stream)
{
    size_t position = 0;
    int result = SIM_OK;
    struct stream *other;

    if (!stream->blocking) {
        return SIM_OK;
    }
    while (result == SIM_OK && (other = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        if (other->device == stream->device && other->blocking && other->is_default != stream->is_default &&
            !stream_is_complete(other)) {
            result = stream_queue_wait(stream, other->handle, other->submitted, other->complete_at);
        }
    }
    return result;
}

int sim_query_stream(void *handle, bool *complete)
{
    int result;
    struct stream *stream = stream_find(handle, &result);

    if (stream == NULL || (stream->is_default && (result = stream_keep_order(stream)) != SIM_OK)) {
        return result;
    }
    *complete = stream_is_complete(stream);
    return stream_result(stream, stream->executed);
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
            result = stream_wait(stream, stream->submitted, stream->complete_at, -1, SIM_STREAM_TIMEOUT);
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
    return stream_wait(stream, stream->submitted, stream->complete_at, timeout, SIM_STREAM_TIMEOUT);
}

/* Closes a stream, and waits until its worker has executed all operations. */
static void end_stream(struct stream *stream)
{
    stream->closed = true;
    pthread_cond_signal(&stream->work);
    stream_wait(stream, stream->submitted, stream->complete_at, -1, SIM_STREAM_TIMEOUT);
    while (stream->executed < stream->submitted) { /* the device is lost or broken: no more bytes are moved */
        stream_wait_for_progress(stream, NEVER);
    }
    sim_drop_handle(stream->handle);
    stream_release(stream);
}

/* Waits for queued operations, as CANN does; a program should have waited for them before. */
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
    if (!stream_is_complete(stream) && sim_device_error(stream->device) == SIM_OK) {
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

size_t sim_count_busy_streams(void)
{
    size_t position = 0, count = 0;
    struct stream *stream;

    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        count += !stream_is_complete(stream);
    }
    return count;
}

/* Queued operations are not executed, as if the device were broken. */
size_t sim_drop_streams(int device)
{
    size_t position = 0, dropped = 0;
    struct stream *stream;

    sim.device[device].broken = SIM_BROKEN;
    stream_wake_all();
    while ((stream = sim_next_object(OBJECT_STREAM, &position)) != NULL) {
        if (stream->device == device && !stream->closed) {
            dropped += !stream->is_default;
            end_stream(stream);
        }
    }
    sim.device[device].broken = SIM_OK;
    return dropped;
}
