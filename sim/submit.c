/* Submitting copies, and calls of the program's functions, to streams. */
#include "submit.h"

#include "cost.h"

#include <stdlib.h>
#include <string.h>

/* An operation for a copy, with room for its pieces. */
static struct operation *new_copy(struct stream *stream, size_t count, int *result)
{
    struct operation *operation;

    *result = stream_keep_order(stream);
    operation = *result == SIM_OK ? stream_next_place(stream, result) : NULL;
    if (operation == NULL) {
        return NULL;
    }
    operation->type = OPERATION_COPY;
    operation->count = 0;
    operation->failure = SIM_OK;
    operation->pieces = count == 1 ? &operation->one : calloc(count, sizeof *operation->pieces);
    if (operation->pieces == NULL) {
        *result = sim_fail(SIM_NO_MEMORY, "there is no memory for a batch of %zu copies", count);
        return NULL;
    }
    return operation;
}

/* The bytes and pieces of a copy, by kind. */
struct parts {
    struct sim_work work[KINDS];
    bool pageable;
};

static void add_work(struct parts *parts, enum sim_kind kind, size_t size, int made_of)
{
    parts->work[kind].size += size;
    parts->work[kind].elements++;
    parts->work[kind].made_of = made_of;
}

/* Adds one element of a batch. */
static int add_piece(struct operation *operation, struct parts *parts, const struct batch *batch, size_t i, int claimed,
                     int device)
{
    struct piece *piece = &operation->pieces[i];
    enum sim_kind kind = KIND_H2H;
    int result = sim_prepare(piece, batch->to[i], batch->rooms[i], batch->from[i], batch->sizes[i], claimed, device,
                             batch->by_host, &kind);

    if (result != SIM_OK) {
        return result;
    }
    operation->count++;
    if (kind == KIND_H2H) {
        return sim_fail(SIM_UNSUPPORTED, "streams do not copy from host to host");
    }
    if (batch->early != NULL && batch->early[i] && !sim_read_early(piece)) {
        return sim_misuse(MISUSE_wrong_pointer, SIM_INVALID, "there are no %zu bytes at %p", piece->size,
                          batch->from[i]);
    }
    if (batch->by_host) {
        add_work(parts, KIND_D2H, piece->size, SIM_ELEMENTS);
        kind = KIND_H2D;
    }
    add_work(parts, kind, piece->size, batch->rows ? SIM_ROWS : SIM_ELEMENTS);
    parts->pageable = parts->pageable || sim_is_pageable(piece);
    return SIM_OK;
}

/* Submits a copy that was prepared. Where pageable memory takes part, it is complete when this returns. */
static int submit_copy(struct stream *stream, const struct parts *parts)
{
    int64_t cost = 0;
    enum sim_kind kind;

    for (kind = KIND_H2H; kind < KINDS; kind++) {
        if (parts->work[kind].elements > 0) {
            sim_count_copy(kind, parts->pageable, parts->work[kind].size);
            cost += sim_copy_cost(kind, parts->pageable, parts->work[kind]);
        }
    }
    sim.counters.worked += cost;
    stream_submit(stream, cost);
    if (!parts->pageable) {
        return SIM_OK;
    }
    return stream_wait(stream, stream->submitted, stream->complete_at, -1, SIM_STREAM_TIMEOUT);
}

int sim_copy_batch(const struct batch *batch, int claimed, size_t *failed, void *handle)
{
    int result;
    struct stream *stream = stream_find(handle, &result);
    struct operation *operation = stream != NULL ? new_copy(stream, batch->count, &result) : NULL;
    struct parts parts = {{{0, 0, SIM_ELEMENTS}}, false};
    size_t i;

    *failed = SIZE_MAX;
    if (operation == NULL) {
        return result;
    }
    for (i = 0; i < batch->count && result == SIM_OK; i++) {
        result = add_piece(operation, &parts, batch, i, claimed, stream->device);
    }
    if (result == SIM_OK) {
        return submit_copy(stream, &parts);
    }
    *failed = i - 1;
    operation_release(operation);
    return result;
}

/* Whether a kernel can make a copy of its list. */
static bool is_reached(struct operation *operation, struct parts *parts, const struct batch *batch, size_t i,
                       int device)
{
    if (add_piece(operation, parts, batch, i, -1, device) != SIM_OK) {
        return false;
    }
    if (!parts->pageable) {
        return true;
    }
    sim_release_piece(&operation->pieces[--operation->count]);
    sim_misuse(MISUSE_wrong_pointer, SIM_DMA_ERROR, "a kernel is to copy %zu bytes from %p to %p, of pageable memory",
               batch->sizes[i], batch->from[i], batch->to[i]);
    return false;
}

int sim_launch(const struct batch *batch, void *handle)
{
    int result;
    struct stream *stream = stream_find(handle, &result);
    struct operation *operation = stream != NULL ? new_copy(stream, batch->count, &result) : NULL;
    struct parts parts = {{{0, 0, SIM_ELEMENTS}}, false};
    enum sim_kind kind;
    size_t i;

    if (operation == NULL) {
        return result;
    }
    for (i = 0; i < batch->count && operation->failure == SIM_OK; i++) {
        operation->failure = is_reached(operation, &parts, batch, i, stream->device) ? SIM_OK : SIM_DMA_ERROR;
    }
    for (kind = KIND_H2H; kind < KINDS; kind++) {
        if (parts.work[kind].elements > 0) {
            parts.work[kind].made_of = SIM_KERNEL;
        }
    }
    parts.pageable = false;
    return submit_copy(stream, &parts);
}

int sim_copy_async(void *to, size_t room, const void *from, size_t size, int claimed, void *stream)
{
    void *source = (void *)from;
    struct batch batch = {&to, &room, &source, &size, 1, NULL, false, false};
    size_t failed;

    return sim_copy_batch(&batch, claimed, &failed, stream);
}

int sim_copy_peer(void *to, int to_device, const void *from, int from_device, size_t size, void *handle)
{
    void *source = (void *)from;
    struct batch batch = {&to, &size, &source, &size, 1, NULL, false, false};
    int result;
    struct stream *stream = stream_find(handle, &result);
    size_t failed;

    if (stream == NULL || (result = sim_check_memory_of(to, to_device)) != SIM_OK ||
        (result = sim_check_memory_of(from, from_device)) != SIM_OK) {
        return result;
    }
    batch.by_host = (to_device != stream->device && !sim_is_peer(stream->device, to_device)) ||
                    (from_device != stream->device && !sim_is_peer(stream->device, from_device));
    return sim_copy_batch(&batch, KIND_D2D, &failed, handle);
}

int sim_call_in_stream(void *handle, void (*function)(void *), void *argument)
{
    int result;
    struct stream *stream = stream_find(handle, &result);
    struct operation *operation;

    if (stream == NULL || (result = stream_keep_order(stream)) != SIM_OK) {
        return result;
    }
    operation = stream_next_place(stream, &result);
    if (operation != NULL) {
        memset(operation, 0, sizeof *operation);
        operation->type = OPERATION_CALL;
        operation->function = function;
        operation->argument = argument;
        operation->time = stream->complete_at;
        stream_submit(stream, 0);
    }
    return result;
}
