/* Launches of the kernels of kernels.ptx. */
#include "cuda.h"
#include "kernels.h"

#include <stdbool.h>
#include <string.h>

struct cuda_result kvferry_cuda_load_module(const struct cuda *cuda, const char *ptx)
{
    void *module = NULL;
    int code = cuda->cuModuleLoadData(&module, ptx);
    struct cuda_result result = {code, (uintptr_t)module};

    return result;
}

struct cuda_result kvferry_cuda_find_kernel(const struct cuda *cuda, uintptr_t module, enum cuda_kernel kernel)
{
    static const char *const names[] = {KERNEL_LIST, KERNEL_STRIDED};
    void *function = NULL;
    int code = cuda->cuModuleGetFunction(&function, (void *)module, names[kernel]);
    struct cuda_result result = {code, (uintptr_t)function};

    return result;
}

int kvferry_cuda_unload_module(const struct cuda *cuda, uintptr_t module)
{
    return cuda->cuModuleUnload((void *)module);
}

/* Launches at most so many blocks, of which each warp has something to do. */
static int launch(const struct cuda *cuda, uintptr_t function, void *parameters, uint64_t warps, unsigned blocks,
                  uintptr_t stream)
{
    const unsigned of_block = KERNEL_THREADS / KERNEL_WARP;
    uint64_t needed = (warps + of_block - 1) / of_block;
    unsigned grid = needed < blocks ? (unsigned)needed : blocks;

    return cuda->cuLaunchKernel((void *)function, grid, 1, 1, KERNEL_THREADS, 1, 1, 0, (void *)stream, &parameters,
                                NULL);
}

static int launch_list(const struct cuda *cuda, uintptr_t function, struct kernel_list *list, unsigned blocks,
                       uintptr_t stream)
{
    int code = list->count > 0 ? launch(cuda, function, list, list->chunks, blocks, stream) : CUDA_SUCCESS;

    list->count = list->chunks = 0;
    return code;
}

static void append(struct kernel_list *list, uint64_t to, uint64_t from, uint32_t length)
{
    struct kernel_copy copy = {to, from, length, list->chunks};

    list->copies[list->count++] = copy;
    list->chunks += kernel_chunks(to, length);
}

int kvferry_cuda_launch_list(const struct cuda *cuda, uintptr_t function, const struct cuda_copy *copies, size_t count,
                             unsigned blocks, uintptr_t stream)
{
    struct kernel_list list;
    uint64_t done, left;
    uint32_t length;
    int code = CUDA_SUCCESS;
    size_t i;

    list.count = list.chunks = 0;
    for (i = 0; i < count; i++) {
        for (done = 0; done < copies[i].length && code == CUDA_SUCCESS; done += length) {
            left = copies[i].length - done;
            length = left < KERNEL_LENGTH_MAX ? (uint32_t)left : KERNEL_LENGTH_MAX;
            append(&list, copies[i].to + done, copies[i].from + done, length);
            if (list.count == KERNEL_COPIES) {
                code = launch_list(cuda, function, &list, blocks, stream);
            }
        }
    }
    return code == CUDA_SUCCESS ? launch_list(cuda, function, &list, blocks, stream) : code;
}

/* Sets all but the groups. Returns how many runs with bytes a group has, not exactly where it is too many. */
static uint64_t set_shape(struct kernel_strided *strided, const struct cuda_strided *runs)
{
    uint64_t total = 1;
    bool none = runs->length == 0;
    int i;

    strided->length = runs->length;
    memcpy(strided->counts, runs->counts, sizeof strided->counts);
    memcpy(strided->to_strides, runs->to_strides, sizeof strided->to_strides);
    memcpy(strided->from_strides, runs->from_strides, sizeof strided->from_strides);
    for (i = 0; i < KERNEL_DIMENSIONS; i++) {
        none = none || runs->counts[i] == 0;
        total *= total <= KERNEL_SLOTS_MAX ? runs->counts[i] : 1; /* of 32 bits each: no overflow */
    }
    return none ? 0 : total;
}

/* Sets as many of the groups as one launch can have. Returns how many: 0 where it cannot even have one. */
static uint32_t set_groups(struct kernel_strided *strided, uint64_t runs, const struct cuda_base *at, size_t count)
{
    uint64_t most;

    for (strided->bases = 0; strided->bases < KERNEL_BASES && strided->bases < count; strided->bases++) {
        strided->at[strided->bases].to = at[strided->bases].to;
        strided->at[strided->bases].from = at[strided->bases].from;
    }
    most = KERNEL_SLOTS_MAX / (kernel_slots(strided) * runs);
    if (strided->bases > most) {
        strided->bases = (uint32_t)most;
    }
    strided->slots = kernel_slots(strided);
    strided->total = (uint32_t)(strided->slots * runs * strided->bases);
    return strided->bases;
}

int kvferry_cuda_launch_strided(const struct cuda *cuda, uintptr_t function, const struct cuda_strided *runs,
                                const struct cuda_base *at, size_t count, unsigned blocks, uintptr_t stream)
{
    struct kernel_strided strided;
    uint64_t of_group = set_shape(&strided, runs), warps;
    int code = CUDA_SUCCESS;
    size_t done;

    if (runs->length > KERNEL_LENGTH_MAX || of_group > KERNEL_SLOTS_MAX) {
        return CUDA_INVALID_VALUE;
    }
    for (done = 0; of_group > 0 && done < count && code == CUDA_SUCCESS; done += strided.bases) {
        if (set_groups(&strided, of_group, at + done, count - done) == 0) {
            return CUDA_INVALID_VALUE;
        }
        warps = ((uint64_t)strided.total + KERNEL_WARP - 1) / KERNEL_WARP;
        code = launch(cuda, function, &strided, warps, blocks, stream);
    }
    return code;
}

/* An allocation, to its end. */
struct range {
    uintptr_t start, end;
};

/* Whose memory is in reach. */
struct reach {
    const void *context;
    bool of_none; /* memory of no context is, too */
};

/* Finds the allocation of an address, which must be in reach. */
static int find_range(const struct cuda *cuda, uintptr_t pointer, struct reach reach, struct range *out)
{
    int attributes[] = {CUDA_POINTER_CONTEXT, CUDA_POINTER_RANGE_START, CUDA_POINTER_RANGE_SIZE};
    void *owner = NULL;
    uintptr_t start = 0;
    size_t size = 0;
    void *outs[] = {&owner, &start, &size};
    int code = cuda->cuPointerGetAttributes(sizeof attributes / sizeof *attributes, attributes, outs, pointer);

    bool reached = owner != NULL ? owner == reach.context : reach.of_none;

    if (code == CUDA_SUCCESS && (!reached || pointer < start || pointer - start >= size)) {
        code = CUDA_NOT_SUPPORTED;
    }
    out->start = start;
    out->end = start + size;
    return code;
}

static int check_end(const struct cuda *cuda, uintptr_t pointer, uint64_t length, struct reach reach,
                     struct range *known)
{
    uintptr_t end = pointer + length;
    int code = CUDA_SUCCESS;

    while (pointer < end && code == CUDA_SUCCESS) {
        if (pointer < known->start || pointer >= known->end) {
            code = find_range(cuda, pointer, reach, known);
        }
        if (code == CUDA_SUCCESS) {
            pointer = known->end;
        }
    }
    return code;
}

/* Checks those sides of the copies that are on a device. */
static struct cuda_progress check_sides(const struct cuda *cuda, struct reach to_reach, struct reach from_reach,
                                        enum cuda_kind kind, const struct cuda_copy *copies, size_t count)
{
    struct range to = {0, 0}, from = {0, 0};
    struct cuda_progress progress = {CUDA_SUCCESS, 0};

    for (; progress.index < count; progress.index++) {
        const struct cuda_copy *copy = &copies[progress.index];

        if (kind != CUDA_DEVICE_TO_HOST) {
            progress.code = check_end(cuda, copy->to, copy->length, to_reach, &to);
        }
        if (kind != CUDA_HOST_TO_DEVICE && progress.code == CUDA_SUCCESS) {
            progress.code = check_end(cuda, copy->from, copy->length, from_reach, &from);
        }
        if (progress.code != CUDA_SUCCESS) {
            break;
        }
    }
    return progress;
}

struct cuda_progress kvferry_cuda_check_reach(const struct cuda *cuda, uintptr_t context, enum cuda_kind kind,
                                              const struct cuda_copy *copies, size_t count)
{
    struct reach reach = {(const void *)context, true};

    return check_sides(cuda, reach, reach, kind, copies, count);
}

struct cuda_progress kvferry_cuda_check_peers(const struct cuda *cuda, uintptr_t to_context, uintptr_t from_context,
                                              const struct cuda_copy *copies, size_t count)
{
    struct reach to = {(const void *)to_context, false}, from = {(const void *)from_context, false};

    return check_sides(cuda, to, from, CUDA_WITHIN_DEVICE, copies, count);
}
