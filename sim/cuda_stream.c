/* CUDA's API: streams, events, and functions that streams call. */
#include "cuda_api.h"

#include "event.h"
#include "submit.h"

enum { STREAM_NON_BLOCKING = 1 };
enum { PRIORITY_LEAST = 0, PRIORITY_GREATEST = -5 };
enum { CAPTURE_GLOBAL, CAPTURE_THREAD_LOCAL, CAPTURE_RELAXED }; /* CUstreamCaptureMode */
enum { CAPTURES_NOTHING = 0 }; /* CUstreamCaptureStatus */
enum { EVENT_DISABLE_TIMING = 2, EVENT_FLAGS_MAX = 7 }; /* CUevent_flags; the others make no difference here */

/* Ends a query. */
static int end_query(int result, bool complete)
{
    return sim_end(result == SIM_OK && !complete ? CUDA_ERROR_NOT_READY : result);
}

SIM_EXPORT int cuStreamCreate(void **stream, unsigned flags)
{
    int result = sim_begin(CALL_cuStreamCreate, NEEDS_DEVICE);

    if (result == SIM_OK && flags > STREAM_NON_BLOCKING) {
        result = sim_fail(SIM_INVALID, "a stream with flags %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_create_stream(flags != STREAM_NON_BLOCKING, stream) : result);
}

/* Priorities make no difference here. Numbers beyond the range count as its nearest end. */
SIM_EXPORT int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
    int result = sim_begin(CALL_cuStreamCreateWithPriority, NEEDS_DEVICE);

    (void)priority;
    if (result == SIM_OK && flags > STREAM_NON_BLOCKING) {
        result = sim_fail(SIM_INVALID, "a stream with flags %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_create_stream(flags != STREAM_NON_BLOCKING, stream) : result);
}

SIM_EXPORT int cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    int result = sim_begin(CALL_cuCtxGetStreamPriorityRange, NEEDS_DEVICE);

    if (result == SIM_OK && least != NULL) {
        *least = PRIORITY_LEAST;
    }
    if (result == SIM_OK && greatest != NULL) {
        *greatest = PRIORITY_GREATEST;
    }
    return sim_end(result);
}

SIM_EXPORT int cuStreamDestroy_v2(void *stream)
{
    int deferred, result = sim_begin_release(CALL_cuStreamDestroy_v2, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_destroy_stream(cuda_stream(stream)) : result, deferred);
}

SIM_EXPORT int cuStreamSynchronize(void *stream)
{
    int result = sim_begin(CALL_cuStreamSynchronize, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_synchronize_stream(cuda_stream(stream), -1) : result);
}

SIM_EXPORT int cuStreamQuery(void *stream)
{
    int result = sim_begin(CALL_cuStreamQuery, NEEDS_DEVICE);
    bool complete = false;

    if (result == SIM_OK) {
        result = sim_query_stream(cuda_stream(stream), &complete);
    }
    return end_query(result, complete);
}

SIM_EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    int result = sim_begin(CALL_cuStreamWaitEvent, NEEDS_DEVICE);

    if (result == SIM_OK && flags != 0) {
        result = sim_fail(SIM_INVALID, "flags must be 0, not %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_stream_wait_event(cuda_stream(stream), event) : result);
}

/* The default stream is the current context's, so there must be one. Other streams need none. */
SIM_EXPORT int cuStreamGetCtx(void *stream, void **context)
{
    bool is_default = cuda_stream(stream) == NULL;
    int result = sim_begin(CALL_cuStreamGetCtx, is_default ? NEEDS_DEVICE : NEEDS_INIT), device = sim_current();

    if (result == SIM_OK && (result = sim_check_out(context)) == SIM_OK && !is_default) {
        result = sim_stream_device(stream, &device);
    }
    if (result == SIM_OK) {
        *context = cuda_context(device);
    }
    return sim_end(result);
}

SIM_EXPORT int cuEventCreate(void **event, unsigned flags)
{
    int result = sim_begin(CALL_cuEventCreate, NEEDS_DEVICE);

    if (result == SIM_OK && flags > EVENT_FLAGS_MAX) {
        result = sim_fail(SIM_INVALID, "an event with flags %u", flags);
    }
    return sim_end(result == SIM_OK ? sim_create_event((flags & EVENT_DISABLE_TIMING) == 0, event) : result);
}

SIM_EXPORT int cuEventDestroy_v2(void *event)
{
    int deferred, result = sim_begin_release(CALL_cuEventDestroy_v2, NEEDS_DEVICE, &deferred);

    return sim_end_release(result == SIM_OK ? sim_destroy_event(event) : result, deferred);
}

SIM_EXPORT int cuEventRecord(void *event, void *stream)
{
    int result = sim_begin(CALL_cuEventRecord, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_record_event(event, cuda_stream(stream)) : result);
}

SIM_EXPORT int cuEventSynchronize(void *event)
{
    int result = sim_begin(CALL_cuEventSynchronize, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_synchronize_event(event, -1) : result);
}

SIM_EXPORT int cuEventQuery(void *event)
{
    int result = sim_begin(CALL_cuEventQuery, NEEDS_DEVICE);
    bool complete = false;

    if (result == SIM_OK) {
        result = sim_query_event(event, &complete);
    }
    return end_query(result, complete);
}

SIM_EXPORT int cuEventElapsedTime(float *milliseconds, void *from, void *to)
{
    int result = sim_begin(CALL_cuEventElapsedTime, NEEDS_DEVICE);

    if (result == SIM_OK && (result = sim_check_out(milliseconds)) == SIM_OK) {
        result = sim_elapsed(milliseconds, from, to);
    }
    return sim_end(result);
}

SIM_EXPORT int cuLaunchHostFunc(void *stream, void (*function)(void *), void *argument)
{
    int result = sim_begin(CALL_cuLaunchHostFunc, NEEDS_DEVICE);

    if (result == SIM_OK && function == NULL) {
        result = sim_fail(SIM_INVALID, "no function is to be called");
    }
    return sim_end(result == SIM_OK ? sim_call_in_stream(cuda_stream(stream), function, argument) : result);
}

/* The simulator captures no graphs. */
SIM_EXPORT int cuStreamIsCapturing(void *stream, int *out)
{
    int result = sim_begin(CALL_cuStreamIsCapturing, NEEDS_DEVICE), device;

    if (result == SIM_OK && (result = sim_check_out(out)) == SIM_OK && cuda_stream(stream) != NULL) {
        result = sim_stream_device(stream, &device);
    }
    if (result == SIM_OK) {
        *out = CAPTURES_NOTHING;
    }
    return sim_end(result);
}

/* Nothing is captured, so a thread's mode is only kept. */
SIM_EXPORT int cuThreadExchangeStreamCaptureMode(int *mode)
{
    static __thread int own = CAPTURE_GLOBAL;
    int result = sim_begin(CALL_cuThreadExchangeStreamCaptureMode, NEEDS_INIT), before = own;

    if (result == SIM_OK && (result = sim_check_out(mode)) == SIM_OK) {
        if (*mode < CAPTURE_GLOBAL || *mode > CAPTURE_RELAXED) {
            result = sim_fail(SIM_INVALID, "%d is no mode of capturing", *mode);
        } else {
            own = *mode;
            *mode = before;
        }
    }
    return sim_end(result);
}
