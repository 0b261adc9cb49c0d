/* The worker of a stream: a thread that executes its operations, in order.
 *
 *  1. It sleeps until there is an operation, at first for 30 µs only, in which a submitter need not wake it.
 *  2. Where the scheduler is adversarial, it delays the operation, less where something waits for it.
 *  3. It executes the operation, without the lock while bytes are moved, and records a failure.
 *  4. It wakes the threads that wait for progress.
 */
#include "worker.h"

#include "call.h"
#include "faults.h"
#include "handle.h"

#include <signal.h>

/* In nanoseconds. */
#define PAUSE 30000             /* the first sleep: to wake the worker would cost the submitter time */
#define DELAY_MAX 3000000       /* of an operation that nothing waits for */
#define AWAITED_DELAY_MAX 50000 /* and of one that something waits for */

/* Sleeps until there is an operation or the stream is closed. */
static void wait_for_work(struct stream *stream)
{
    stream->worker = WORKER_PAUSING;
    stream_sleep(&stream->work, sim_now() + PAUSE);
    while (stream->submitted == stream->executed && !stream->closed) {
        stream->worker = WORKER_IDLE;
        stream_sleep(&stream->work, NEVER);
    }
    stream->worker = WORKER_RUNNING;
}

/* A number that depends on the seed, the stream, the operation and salt alone. */
static uint64_t random_number(const struct stream *stream, uint64_t salt)
{
    uint64_t x = sim.seed + stream->number * 0x9e3779b97f4a7c15u + stream->executed * 0xbf58476d1ce4e5b9u + salt;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Delays an operation for a random time, which is shorter once something waits for it. */
static void delay_operation(struct stream *stream)
{
    int64_t start = sim_now();
    bool also_awaited = random_number(stream, 1) % 8 == 0;
    int64_t awaited_delay = also_awaited ? (int64_t)(random_number(stream, 2) % AWAITED_DELAY_MAX) : 0;
    int64_t delay = random_number(stream, 3) % 4 == 0 ? 0 : (int64_t)(random_number(stream, 4) % DELAY_MAX);
    int64_t until;

    while (sim.adversarial) {
        until = start + (stream->awaited > stream->executed ? awaited_delay : delay);
        if (sim_now() >= until) {
            return;
        }
        stream->worker = WORKER_PAUSING;
        stream_sleep(&stream->work, until);
        stream->worker = WORKER_RUNNING;
    }
}

static void hang(struct stream *stream)
{
    unsigned releases = sim.hang_releases;

    stream->hanging = true;
    pthread_cond_broadcast(&stream->done);
    while (sim.hang_releases == releases && sim_device_error(stream->device) == SIM_OK) {
        stream_sleep(&stream->work, NEVER);
    }
    stream->hanging = false;
}

/* Moves the bytes of a copy. The pieces of a batch have no order. */
static bool move_pieces(const struct operation *operation, size_t first)
{
    bool moved = true;
    size_t i;

    for (i = 0; i < operation->count; i++) {
        moved = sim_move(&operation->pieces[(first + i) % operation->count]) && moved;
    }
    return moved;
}

static int execute_copy(struct stream *stream, const struct operation *operation)
{
    int result = sim_exec_fault(stream->device);
    size_t first = sim.adversarial && operation->count > 0 ? (size_t)(random_number(stream, 5) % operation->count) : 0;
    size_t i;
    bool moved;

    if (result == FAULT_HANG) {
        hang(stream);
        result = sim_device_error(stream->device);
    }
    for (i = 0; i < operation->count && result == SIM_OK; i++) {
        result = sim_check_piece(&operation->pieces[i], stream->device);
    }
    if (result != SIM_OK) {
        return result;
    }
    pthread_mutex_unlock(&sim.lock);
    moved = move_pieces(operation, first);
    pthread_mutex_lock(&sim.lock);
    if (operation->failure != SIM_OK) {
        return operation->failure;
    }
    return moved ? SIM_OK : sim_misuse(MISUSE_wrong_pointer, SIM_DMA_ERROR, "pageable memory of a copy is not there");
}

/* Waits until another stream has got to a place. */
static void execute_wait(struct stream *stream, const struct operation *operation)
{
    struct stream *other;

    while ((other = sim_object(OBJECT_STREAM, operation->stream)) != NULL && other->executed < operation->place &&
           sim_device_error(stream->device) == SIM_OK) {
        stream_set_awaited(other, operation->place);
        stream_wait_for_progress(other, NEVER);
    }
}

/* Calls a function of the program, unless something before it has failed. */
static void execute_call(struct stream *stream, const struct operation *operation)
{
    while (sim_now() < operation->time && sim_device_error(stream->device) == SIM_OK) {
        stream_sleep(&stream->work, operation->time);
    }
    if (stream->failure == SIM_OK && sim_device_error(stream->device) == SIM_OK) {
        sim_run_callback(operation->function, operation->argument);
    }
}

/* Records that an operation failed. */
static void record_failure(struct stream *stream, int result)
{
    if (stream->failure == SIM_OK) {
        stream->failure = result;
        stream->failed_at = stream->executed;
    }
    if (sim_api.failures_spread && result != SIM_LOST && sim.device[stream->device].broken == SIM_OK) {
        sim.device[stream->device].broken = result;
        stream_wake_all();
    }
}

static void execute(struct stream *stream)
{
    struct operation *operation = &stream->queue[stream->executed % STREAM_DEPTH];
    int result = SIM_OK;

    if (operation->type == OPERATION_WAIT) {
        execute_wait(stream, operation);
    } else if (operation->type == OPERATION_CALL) {
        execute_call(stream, operation);
    } else {
        result = execute_copy(stream, operation);
        if (sim_executed(stream->device)) {
            stream_wake_all();
        }
    }
    if (result != SIM_OK) {
        record_failure(stream, result);
    }
    if (operation->type == OPERATION_COPY) {
        operation_release(operation);
    }
    stream->executed++;
    if (stream->waiters > 0) {
        pthread_cond_broadcast(&stream->done);
    }
}

static void *run(void *argument)
{
    struct stream *stream = argument;

    sim_set_precise_timers();
    pthread_mutex_lock(&sim.lock);
    while (!stream->closed || stream->submitted > stream->executed) {
        if (stream->submitted == stream->executed) {
            wait_for_work(stream);
        } else {
            if (sim.adversarial) {
                delay_operation(stream);
            }
            execute(stream);
        }
    }
    stream_release(stream);
    pthread_mutex_unlock(&sim.lock);
    return NULL;
}

/* The thread blocks all signals: they are the program's. */
bool worker_start(struct stream *stream)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_t thread;
    bool started;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    started = pthread_create(&thread, &attributes, run, stream) == 0;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}
