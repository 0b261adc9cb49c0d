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
#define KERNELS_MARK "kvferry kernels 2"

/* The names of the kernels. */
#define KERNEL_LIST "kvferry_copy_list"
#define KERNEL_STRIDED "kvferry_copy_strided"

enum {
    KERNEL_THREADS = 512,  /* of a block, in one dimension, as is the grid */
    KERNEL_WARP = 32,      /* threads */
    KERNEL_COPIES = 170,   /* of a list: as many as the parameters have room for */
    KERNEL_BASES = 249,    /* of strided runs: the same */
    KERNEL_DIMENSIONS = 4, /* of them */
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

/* Where a group of runs begins. */
struct kernel_base {
    uint64_t to, from;
};

/*
 * Groups of runs of one length, all of one shape. Run (i, j, k, l) of a group lies at its base's to + i * to_strides[0]
 * + j * to_strides[1] + ... and comes from the place that the other strides say; i is below counts[0], and so on. A
 * dimension that is not used has the count 1. Slots are numbered group by group, and in a group the last dimension
 * varies fastest.
 */
struct kernel_strided {
    uint64_t length; /* bytes of a run, from 1 */
    uint32_t slots;  /* of a run: see kernel_slots */
    uint32_t total;  /* slots of all groups: at most KERNEL_SLOTS_MAX */
    uint32_t bases;  /* how many there are, from 1 */
    uint32_t counts[KERNEL_DIMENSIONS];
    int64_t to_strides[KERNEL_DIMENSIONS]; /* bytes */
    int64_t from_strides[KERNEL_DIMENSIONS];
    struct kernel_base at[KERNEL_BASES];
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
    uint64_t all = 0, room = strided->length + KERNEL_SLOT - 1;
    uint32_t i;

    for (i = 0; i < KERNEL_DIMENSIONS; i++) {
        all |= (uint64_t)strided->to_strides[i];
    }
    for (i = 0; i < strided->bases; i++) {
        all |= strided->at[i].to;
    }
    return (uint32_t)((room + (all % KERNEL_SLOT != 0 ? KERNEL_SLOT - 1 : 0)) / KERNEL_SLOT);
}

#endif
