/*
 * What the kernels of kernels.ptx are given. Three sides read it: the kernels (kernels.cu), the launches (launch.c), and
 * the simulated driver. A change of a layout changes KERNELS_MARK.
 *
 * Each struct is the only parameter of its kernel, by value: the driver copies it at the launch, so no list has to stay
 * in memory while a kernel runs. A kernel takes 4096 bytes of parameters at most.
 */
#ifndef KVFERRY_KERNELS_H
#define KVFERRY_KERNELS_H

#include <stdint.h>

/* The first line of kernels.ptx says this. */
#define KERNELS_MARK "kvferry kernels 1"

/* The names of the kernels. */
#define KERNEL_LIST "kvferry_copy_list"
#define KERNEL_STRIDED "kvferry_copy_strided"

enum {
    KERNEL_THREADS = 512,  /* of a block, in one dimension, as is the grid */
    KERNEL_WARP = 32,      /* threads */
    KERNEL_COPIES = 170,   /* of a list: as many as the parameters have room for */
    KERNEL_DIMENSIONS = 4, /* of a strided copy */
    KERNEL_LINE = 128,     /* bytes: chunks begin at multiples of it in the destination */
    KERNEL_CHUNK = 2048,   /* bytes: what one warp copies at a time */
    KERNEL_SLOT = 16,      /* bytes: what one thread stores at a time, aligned */
};

/* The longest copy of a list: its chunks can be counted in 32 bits together with those of the others. */
#define KERNEL_LENGTH_MAX ((uint32_t)1 << 30)

/* Numbers of slots do not overflow where each thread adds its last step. */
#define KERNEL_SLOTS_MAX ((uint32_t)1 << 31)

/* One copy. Its chunks are numbered behind those of the copies before it, from `first` on. */
struct kernel_copy {
    uint64_t to, from;
    uint32_t length; /* bytes, from 1 to KERNEL_LENGTH_MAX */
    uint32_t first;
};

/* Copies in no order. */
struct kernel_list {
    uint32_t count;  /* of copies, from 1 */
    uint32_t chunks; /* of all of them */
    struct kernel_copy copies[KERNEL_COPIES];
};

/*
 * Runs of one length. Run (i, j, k, l) lies at to + i * to_strides[0] + j * to_strides[1] + ... and comes from the place
 * that the other strides say; i is below counts[0], and so on. A dimension that is not used has the count 1.
 */
struct kernel_strided {
    uint64_t to, from;
    uint64_t length; /* bytes of a run, from 1 */
    uint32_t slots;  /* of a run: see kernel_slots */
    uint32_t total;  /* slots of all runs: at most KERNEL_SLOTS_MAX */
    uint32_t counts[KERNEL_DIMENSIONS];
    int64_t to_strides[KERNEL_DIMENSIONS]; /* bytes */
    int64_t from_strides[KERNEL_DIMENSIONS];
};

#ifndef KERNEL_FUNCTION
#define KERNEL_FUNCTION static inline
#endif

/* How many chunks a copy has. */
KERNEL_FUNCTION uint32_t kernel_chunks(uint64_t to, uint64_t length)
{
    return (uint32_t)((to % KERNEL_LINE + length + KERNEL_CHUNK - 1) / KERNEL_CHUNK);
}

/* How many slots the longest run touches: one more where runs do not all begin at the beginning of a slot. */
KERNEL_FUNCTION uint32_t kernel_slots(const struct kernel_strided *strided)
{
    uint64_t all = strided->to, room = strided->length + KERNEL_SLOT - 1;
    int i;

    for (i = 0; i < KERNEL_DIMENSIONS; i++) {
        all |= (uint64_t)strided->to_strides[i];
    }
    return (uint32_t)((room + (all % KERNEL_SLOT != 0 ? KERNEL_SLOT - 1 : 0)) / KERNEL_SLOT);
}

#endif
