/* CUDA's API: copies. */
#include "cuda_api.h"

#include "submit.h"

#include <stdlib.h>

/* CUmemcpySrcAccessOrder: when a source is read. */
enum { ORDER_STREAM = 1, ORDER_DURING_API_CALL = 2, ORDER_ANY = 3 };

enum { FLAGS_MAX = 1 }; /* CUmemcpyFlags, which make no difference here */

/* CUmemcpyAttributes */
struct attributes {
    int order;
    struct cuda_location from, to; /* hints */
    unsigned flags;
};

/* Copies in the default stream, and waits for that. */
static int copy_now(enum cuda_call call, void *to, const void *from, size_t size, enum sim_kind kind)
{
    int result = sim_begin(call, NEEDS_DEVICE);

    if (result == SIM_OK && (result = sim_synchronize_device(STREAMS_BLOCKING)) == SIM_OK) {
        result = sim_copy_now(to, size, from, size, (int)kind);
    }
    return sim_end(result);
}

SIM_EXPORT int cuMemcpyHtoD_v2(void *to, const void *from, size_t size)
{
    return copy_now(CALL_cuMemcpyHtoD_v2, to, from, size, KIND_H2D);
}

SIM_EXPORT int cuMemcpyDtoH_v2(void *to, void *from, size_t size)
{
    return copy_now(CALL_cuMemcpyDtoH_v2, to, from, size, KIND_D2H);
}

SIM_EXPORT int cuMemcpyDtoD_v2(void *to, void *from, size_t size)
{
    return copy_now(CALL_cuMemcpyDtoD_v2, to, from, size, KIND_D2D);
}

SIM_EXPORT int cuMemsetD8_v2(void *to, unsigned char value, size_t size)
{
    int result = sim_begin(CALL_cuMemsetD8_v2, NEEDS_DEVICE);

    if (result == SIM_OK && (result = sim_synchronize_device(STREAMS_BLOCKING)) == SIM_OK) {
        result = sim_set_now(to, size, value, size);
    }
    return sim_end(result);
}

static int copy_later(enum cuda_call call, void *to, const void *from, size_t size, enum sim_kind kind, void *stream)
{
    int result = sim_begin(call, NEEDS_DEVICE);

    return sim_end(result == SIM_OK ? sim_copy_async(to, size, from, size, (int)kind, cuda_stream(stream)) : result);
}

SIM_EXPORT int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream)
{
    return copy_later(CALL_cuMemcpyHtoDAsync_v2, to, from, size, KIND_H2D, stream);
}

SIM_EXPORT int cuMemcpyDtoHAsync_v2(void *to, void *from, size_t size, void *stream)
{
    return copy_later(CALL_cuMemcpyDtoHAsync_v2, to, from, size, KIND_D2H, stream);
}

SIM_EXPORT int cuMemcpyDtoDAsync_v2(void *to, void *from, size_t size, void *stream)
{
    return copy_later(CALL_cuMemcpyDtoDAsync_v2, to, from, size, KIND_D2D, stream);
}

SIM_EXPORT int cuMemcpyPeerAsync(void *to, void *to_context, void *from, void *from_context, size_t size,
                                 void *handle)
{
    int result = sim_begin(CALL_cuMemcpyPeerAsync, NEEDS_DEVICE);
    void *stream = cuda_stream(handle);
    int to_device = cuda_device_of(to_context), from_device = cuda_device_of(from_context);

    if (result == SIM_OK && (to_device < 0 || from_device < 0)) {
        result = sim_fail(SIM_NO_DEVICE_SET, "a context of a copy between two is none, or has gone");
    }
    return sim_end(result == SIM_OK ? sim_copy_peer(to, to_device, from, from_device, size, stream) : result);
}

#ifndef KVFERRY_SIM_OLDER_CUDA /* which lacks these */

/* Whether a source is read before its turn. Where any time is allowed, the adversarial scheduler's seed decides. */
static bool is_early(int order)
{
    return order == ORDER_DURING_API_CALL || (order == ORDER_ANY && sim.adversarial && sim.seed % 2 == 0);
}

/* Finds the copies of a batch whose sources are read at once. Attributes i are of the copies from indexes[i] on. */
static int read_orders(const struct attributes *attributes, const size_t *indexes, size_t count, size_t copies,
                       bool *early)
{
    size_t i, copy;

    if (attributes == NULL || indexes == NULL || count == 0 || count > copies) {
        return sim_fail(SIM_INVALID, "%zu attributes for %zu copies", count, copies);
    }
    for (i = 0; i < count; i++) {
        if (indexes[i] >= copies || (i == 0 ? indexes[i] != 0 : indexes[i] <= indexes[i - 1])) {
            return sim_fail(SIM_INVALID, "attributes %zu of a batch begin at copy %zu", i, indexes[i]);
        }
        if (attributes[i].order < ORDER_STREAM || attributes[i].order > ORDER_ANY || attributes[i].flags > FLAGS_MAX) {
            return sim_fail(SIM_INVALID, "attributes %zu of a batch have order %d and flags %u", i,
                            attributes[i].order, attributes[i].flags);
        }
        for (copy = indexes[i]; copy < copies; copy++) {
            early[copy] = is_early(attributes[i].order);
        }
    }
    return SIM_OK;
}

static int copy_batch(void **to, void **from, size_t *sizes, size_t count, const struct attributes *attributes,
                      const size_t *indexes, size_t attribute_count, size_t *failed, void *stream)
{
    struct batch batch = {to, sizes, from, sizes, count, NULL, false, false};
    bool *early;
    int result;

    *failed = SIZE_MAX;
    if (to == NULL || from == NULL || sizes == NULL || count == 0) {
        return sim_fail(SIM_INVALID, "a batch of %zu copies", count);
    }
    if (cuda_stream(stream) == NULL) {
        return sim_fail(SIM_INVALID, "a batch is no work for the default stream");
    }
    batch.early = early = calloc(count, sizeof *early);
    if (early == NULL) {
        return sim_fail(SIM_NO_MEMORY, "there is no memory for a batch of %zu copies", count);
    }
    result = read_orders(attributes, indexes, attribute_count, count, early);
    if (result == SIM_OK) {
        result = sim_copy_batch(&batch, -1, failed, stream);
    }
    free(early);
    return result;
}

SIM_EXPORT int cuMemcpyBatchAsync(void **to, void **from, size_t *sizes, size_t count, struct attributes *attributes,
                                  size_t *indexes, size_t attribute_count, size_t *failed, void *stream)
{
    int result = sim_begin(CALL_cuMemcpyBatchAsync, NEEDS_DEVICE);

    if (result == SIM_OK && (result = sim_check_out(failed)) == SIM_OK) {
        result = copy_batch(to, from, sizes, count, attributes, indexes, attribute_count, failed, stream);
    }
    return sim_end(result);
}

SIM_EXPORT int cuMemcpyBatchAsync_v2(void **to, void **from, size_t *sizes, size_t count,
                                     struct attributes *attributes, size_t *indexes, size_t attribute_count,
                                     void *stream)
{
    int result = sim_begin(CALL_cuMemcpyBatchAsync_v2, NEEDS_DEVICE);
    size_t failed;

    if (result == SIM_OK) {
        result = copy_batch(to, from, sizes, count, attributes, indexes, attribute_count, &failed, stream);
    }
    return sim_end(result);
}

#endif
