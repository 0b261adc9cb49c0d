/* The kernels, compiled for the processor: their threads run one after the other, and each access is checked.
 *
 * The files of the package cuda are links here, since Go builds a package again only after a change in its own folder. */
#include "host.h"

#include <stdbool.h>
#include <string.h>

#define KERNEL_FUNCTION static inline
#define KERNEL static void
#define PARAMETER const
#define THREAD thread
#define BLOCK block
#define BLOCKS blocks
#define UNROLLED
#define ROLLED

static uint32_t thread, block, blocks;

struct words {
    uint64_t low, high;
};

#include "kernels.h"

static const struct kerneltest_side *source, *destination; /* of the copies that are made */
static unsigned char *touched;                             /* how often each byte of the destination was written */
static const char *fault;

/* Finds bytes, or says what is wrong with them. */
static unsigned char *bytes(const struct kerneltest_side *side, uint64_t at, uint64_t size)
{
    if (at % size != 0) {
        fault = "an access is not aligned";
    } else if (at < side->start || at + size > side->start + side->size) {
        fault = "an access is out of bounds";
    } else {
        return side->bytes + (at - side->start);
    }
    return NULL;
}

/* Only bytes of copies may be read. */
static bool may_read(uint64_t at, uint64_t size)
{
    uint64_t i;

    for (i = 0; i < size; i++) {
        if (!source->used[at - source->start + i]) {
            fault = "a byte is read that belongs to no copy";
            return false;
        }
    }
    return true;
}

static struct words load16(bool condition, uint64_t at)
{
    struct words v = {0, 0};
    unsigned char *from = condition ? bytes(source, at, 16) : NULL;

    if (from != NULL && may_read(at, 16)) {
        memcpy(&v, from, sizeof v);
    }
    return v;
}

static void store(uint64_t at, const void *from, uint64_t size)
{
    unsigned char *to = bytes(destination, at, size);
    uint64_t i;

    for (i = 0; to != NULL && i < size; i++) {
        to[i] = ((const unsigned char *)from)[i];
        touched[at - destination->start + i]++;
    }
}

static void store16(uint64_t at, struct words v)
{
    store(at, &v, sizeof v);
}

static void copy1(uint64_t to, uint64_t from)
{
    unsigned char *byte = bytes(source, from, 1);

    if (byte != NULL && may_read(from, 1)) {
        store(to, byte, 1);
    }
}

static uint64_t joined(uint64_t low, uint64_t high, uint32_t bits)
{
    return low >> bits | (bits > 0 ? high << (64 - bits) : 0);
}

#include "kernels_cu.h"

#include "launch_c.h"

static char list_function, strided_function;

/* A driver's launch, which runs the kernel at once. */
static int launch_here(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters,
                       void **extra)
{
    if (grid_y != 1 || grid_z != 1 || block_x != KERNEL_THREADS || block_y != 1 || block_z != 1 || shared != 0 ||
        stream != NULL || extra != NULL) {
        return CUDA_INVALID_VALUE;
    }
    blocks = grid_x;
    for (block = 0; block < blocks; block++) {
        for (thread = 0; thread < KERNEL_THREADS; thread++) {
            if (function == &list_function) {
                kvferry_copy_list(*(const struct kernel_list *)*parameters);
            } else {
                kvferry_copy_strided(*(const struct kernel_strided *)*parameters);
            }
        }
    }
    return CUDA_SUCCESS;
}

static struct cuda begin(const struct kerneltest_run *run)
{
    struct cuda cuda;

    memset(&cuda, 0, sizeof cuda);
    cuda.cuLaunchKernel = launch_here;
    source = &run->from;
    destination = &run->to;
    touched = run->touched;
    fault = NULL;
    return cuda;
}

const char *kerneltest_list(const struct kerneltest_run *run, const struct cuda_copy *copies, size_t count)
{
    struct cuda cuda = begin(run);
    int code = kvferry_cuda_launch_list(&cuda, (uintptr_t)&list_function, copies, count, run->blocks, 0);

    return code == CUDA_SUCCESS ? fault : "the launch failed";
}

const char *kerneltest_strided(const struct kerneltest_run *run, const struct cuda_strided *runs,
                               const struct cuda_base *at, size_t count)
{
    struct cuda cuda = begin(run);
    int code = kvferry_cuda_launch_strided(&cuda, (uintptr_t)&strided_function, runs, at, count, run->blocks, 0);

    return code == CUDA_SUCCESS ? fault : "the launch failed";
}

static struct kerneltest_count counted;

/* A driver's launch, which only counts. */
static int launch_nothing(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters,
                          void **extra)
{
    const struct kernel_strided *strided = *parameters;

    (void)function, (void)grid_x, (void)grid_y, (void)grid_z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)stream, (void)extra;
    counted.launches++;
    counted.groups += strided->bases;
    counted.slots += strided->total;
    return CUDA_SUCCESS;
}

struct kerneltest_count kerneltest_count_strided(const struct cuda_strided *runs, const struct cuda_base *at,
                                                 size_t count)
{
    struct cuda cuda;

    memset(&cuda, 0, sizeof cuda);
    memset(&counted, 0, sizeof counted);
    cuda.cuLaunchKernel = launch_nothing;
    counted.code = kvferry_cuda_launch_strided(&cuda, (uintptr_t)&strided_function, runs, at, count, 4, 0);
    return counted;
}
