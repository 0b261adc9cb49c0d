/* The worker of a stream: a thread that executes its operations, in order.
 *
 *  1. It rests until there is an operation: at first only for a moment, so that who submits meanwhile need not wake it;
 *  2. where the scheduler is adversarial, it holds the operation back for a while, or until something waits;
 *  3. it executes the operation, without the lock while bytes are moved, and remembers a failure;
 *  4. it wakes those that wait for that.
 */
#include "worker.h"

#include "call.h"
#include "faults.h"
#include "handle.h"

#include <signal.h>

#define NAP 30000               /* ns of rest in which the worker is not woken, as that costs the submitter time */
#define DELAY_MAX 3000000       /* ns that an operation is held back for, if nothing waits for it */
#define HURRIED_DELAY_MAX 50000 /* and if something does */

/* Sleeps until there is something to do: at first for a moment only, so that who submits meanwhile need not wake it. */
static void rest(struct stream *stream)
{
    stream->worker = WORKER_NAPPING;
    stream_sleep(&stream->work, sim_now() + NAP);
    while (stream->submitted == stream->executed && !stream->closed) {
        stream->worker = WORKER_IDLE;
        stream_sleep(&stream->work, NEVER);
    }
    stream->worker = WORKER_RUNNING;
}

/* A number that only the seed, the stream and the operation determine. */
static uint64_t chance(const struct stream *stream, uint64_t salt)
{
    uint64_t x = sim.seed + stream->number * 0x9e3779b97f4a7c15u + stream->executed * 0xbf58476d1ce4e5b9u + salt;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Holds an operation back for as long as chance has it, and nothing waits for it. */
static void hold_back(struct stream *stream)
{
    int64_t start = sim_now();
    int64_t hurried_delay = chance(stream, 1) % 8 == 0 ? (int64_t)(chance(stream, 2) % HURRIED_DELAY_MAX) : 0;
    int64_t delay = chance(stream, 3) % 4 == 0 ? 0 : (int64_t)(chance(stream, 4) % DELAY_MAX);
    int64_t until;

    while (sim.adversarial) {
        until = start + (stream->hurried > stream->executed ? hurried_delay : delay);
        if (sim_now() >= until) {
            return;
        }
        stream->worker = WORKER_NAPPING;
        stream_sleep(&stream->work, until);
        stream->worker = WORKER_RUNNING;
    }
}

static void hang(struct stream *stream)
{
    unsigned releases = sim.hang_releases;

    stream->hanging = true;
    pthread_cond_broadcast(&stream->done);
    while (sim.hang_releases == releases && sim_trouble(stream->device) == SIM_OK) {
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
    size_t first = sim.adversarial ? (size_t)(chance(stream, 5) % operation->count) : 0;
    bool moved;

    if (result == FAULT_HANG) {
        hang(stream);
        result = sim_trouble(stream->device);
    }
    if (result != SIM_OK) {
        return result;
    }
    pthread_mutex_unlock(&sim.lock);
    moved = move_pieces(operation, first);
    pthread_mutex_lock(&sim.lock);
    return moved ? SIM_OK : sim_misuse(MISUSE_wrong_pointer, SIM_DMA_ERROR, "pageable memory of a copy is not there");
}

/* Waits until another stream has got to a place. */
static void execute_wait(struct stream *stream, const struct operation *operation)
{
    struct stream *other;

    while ((other = sim_object(OBJECT_STREAM, operation->stream)) != NULL && other->executed < operation->place &&
           sim_trouble(stream->device) == SIM_OK) {
        stream_hurry(other, operation->place);
        stream_wait_for_progress(other, NEVER);
    }
}

/* Calls a function of the program, unless something before it has failed. */
static void execute_call(struct stream *stream, const struct operation *operation)
{
    while (sim_now() < operation->time && sim_trouble(stream->device) == SIM_OK) {
        stream_sleep(&stream->work, operation->time);
    }
    if (stream->failure == SIM_OK && sim_trouble(stream->device) == SIM_OK) {
        sim_call_back(operation->function, operation->argument);
    }
}

/* Remembers that an operation failed. */
static void fail(struct stream *stream, int result)
{
    if (stream->failure == SIM_OK) {
        stream->failure = result;
        stream->failed_at = stream->executed;
    }
    if (sim_face.failures_spread && result != SIM_LOST && sim.device[stream->device].broken == SIM_OK) {
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
        fail(stream, result);
    }
    if (operation->type == OPERATION_COPY) {
        operation_release(operation);
    }
    stream->executed++;
    if (stream->impatient > 0) {
        pthread_cond_broadcast(&stream->done);
    }
}

static void *work(void *argument)
{
    struct stream *stream = argument;

    sim_sharpen_timers();
    pthread_mutex_lock(&sim.lock);
    while (!stream->closed || stream->submitted > stream->executed) {
        if (stream->submitted == stream->executed) {
            rest(stream);
        } else {
            if (sim.adversarial) {
                hold_back(stream);
            }
            execute(stream);
        }
    }
    stream_release(stream);
    pthread_mutex_unlock(&sim.lock);
    return NULL;
}

/* It takes no signal of the program's. */
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
    started = pthread_create(&thread, &attributes, work, stream) == 0;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}
