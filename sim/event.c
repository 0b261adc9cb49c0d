/* Events: places in streams. */
#include "event.h"

#include "handle.h"
#include "streams.h"

#include <stdlib.h>

struct event {
    int device;
    void *handle;
    const void *stream; /* NULL before it is recorded */
    uint64_t place;
    int64_t time;
    int64_t worked; /* by its stream, before its place */
    bool timed;
};

static struct event *event_of(const void *handle, int *result)
{
    struct event *event = sim_object(OBJECT_EVENT, handle);

    *result = SIM_OK;
    if (event == NULL) {
        *result = sim_misuse(MISUSE_unknown_handle, SIM_NO_SUCH_HANDLE, "%p is no event", handle);
    } else if (event->device != sim_current()) {
        *result = sim_misuse(MISUSE_other_device, SIM_OTHER_DEVICE, "an event of device %d, and device %d is set",
                             event->device, sim_current());
    }
    return *result == SIM_OK ? event : NULL;
}

int sim_create_event(bool timed, void **out)
{
    struct event *event = calloc(1, sizeof *event);

    if (out != NULL && event != NULL) {
        event->device = sim_current();
        event->timed = timed;
        *out = event->handle = sim_handle(OBJECT_EVENT, event);
        if (*out != NULL) {
            return SIM_OK;
        }
    }
    free(event);
    return out == NULL ? sim_fail(SIM_INVALID, "an event is to be returned at NULL")
                       : sim_fail(SIM_NO_MEMORY, "there is no memory or handle for an event");
}

int sim_destroy_event(void *handle)
{
    int result;
    struct event *event = event_of(handle, &result);

    if (event != NULL) {
        sim_drop_handle(handle);
        free(event);
    }
    return result;
}

int sim_record_event(void *handle, void *stream_handle)
{
    int result;
    struct event *event = event_of(handle, &result);
    struct stream *stream = event != NULL ? stream_find(stream_handle, &result) : NULL;

    if (stream == NULL || (result = stream_keep_order(stream)) != SIM_OK) {
        return result;
    }
    event = event_of(handle, &result); /* keeping the order may have released the lock */
    if (event != NULL) {
        event->stream = stream->handle;
        event->place = stream->submitted;
        event->time = stream->complete_at;
        event->worked = stream->worked;
    }
    return result;
}

int sim_elapsed(float *milliseconds, void *from_handle, void *to_handle)
{
    int result;
    struct event *from = event_of(from_handle, &result);
    struct event *to = from != NULL ? event_of(to_handle, &result) : NULL;
    bool complete = false;

    if (to == NULL) {
        return result;
    }
    if (!from->timed || !to->timed || from->stream == NULL || from->stream != to->stream) {
        return sim_fail(SIM_UNTIMED, "the two events are not timed ones that were recorded in one stream");
    }
    if (sim_query_event(from_handle, &complete) == SIM_OK && complete) {
        result = sim_query_event(to_handle, &complete);
    }
    if (result == SIM_OK && !complete) {
        result = sim_fail(SIM_NOT_READY, "one of the two events is not complete");
    }
    if (result == SIM_OK) {
        *milliseconds = (float)(to->worked - from->worked) / 1e6f;
    }
    return result;
}

int sim_stream_wait_event(void *stream_handle, void *handle)
{
    int result;
    struct event *event = event_of(handle, &result);
    struct stream *stream = event != NULL ? stream_find(stream_handle, &result) : NULL;

    return stream != NULL ? stream_queue_wait(stream, event->stream, event->place, event->time) : result;
}

size_t sim_count_events(void)
{
    size_t position = 0, count = 0;

    while (sim_next_object(OBJECT_EVENT, &position) != NULL) {
        count++;
    }
    return count;
}

size_t sim_drop_events(int device)
{
    size_t position = 0, dropped = 0;
    struct event *event;

    while ((event = sim_next_object(OBJECT_EVENT, &position)) != NULL) {
        if (event->device == device) {
            sim_drop_handle(event->handle);
            free(event);
            dropped++;
        }
    }
    return dropped;
}

int sim_query_event(void *handle, bool *complete)
{
    int result;
    struct event *event = event_of(handle, &result);
    struct stream *stream;

    if (event == NULL) {
        return result;
    }
    stream = sim_object(OBJECT_STREAM, event->stream);
    *complete = (stream == NULL || stream->executed >= event->place) && sim_now() >= event->time;
    if (sim_device_error(event->device) != SIM_OK) {
        return sim_device_error(event->device);
    }
    return stream != NULL && *complete ? stream_result(stream, event->place) : SIM_OK;
}

int sim_synchronize_event(void *handle, int64_t timeout)
{
    int result;
    struct event *event = event_of(handle, &result);
    struct stream *stream;

    if (event == NULL) {
        return result;
    }
    stream = sim_object(OBJECT_STREAM, event->stream); /* NULL: it was destroyed, and so is complete */
    return stream != NULL ? stream_wait(stream, event->place, event->time, timeout, SIM_EVENT_TIMEOUT) : SIM_OK;
}
