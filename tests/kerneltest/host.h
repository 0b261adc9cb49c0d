#ifndef KERNELTEST_HOST_H
#define KERNELTEST_HOST_H

#include "cuda.h"

/* Memory as a kernel sees it: at an address that the test chose. */
struct kerneltest_side {
    uint64_t start, size;
    unsigned char *bytes;
    unsigned char *used; /* of a source: whether a byte belongs to a copy */
};

struct kerneltest_run {
    struct kerneltest_side to, from;
    unsigned char *touched; /* how often each byte of `to` was written */
    uint32_t blocks;        /* of a launch, at most */
};

/* They return what the kernel did wrong, NULL for nothing. */
const char *kerneltest_list(const struct kerneltest_run *run, const struct cuda_copy *copies, size_t count);
const char *kerneltest_strided(const struct kerneltest_run *run, const struct cuda_strided *runs,
                               const struct cuda_base *at, size_t count);

/* How many launches of the strided kernel there would be, with how many groups and slots. No byte is copied. */
struct kerneltest_count {
    int code;
    uint64_t launches, groups, slots;
};
struct kerneltest_count kerneltest_count_strided(const struct cuda_strided *runs, const struct cuda_base *at,
                                                 size_t count);

#endif
