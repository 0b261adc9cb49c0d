/* Checks for C programs that test a library. A program tests one thing after the other and ends with 0, or prints what
 * was wrong and ends with 1.
 *
 * The including header defines LAST_ERROR(): the library's text about the last call that failed on this thread, or
 * NULL. */
#ifndef TESTING_H
#define TESTING_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Prints what is wrong, with the library's last error, and ends the process. */
#define FAIL(...)                                                   \
    do {                                                            \
        const char *error_ = LAST_ERROR();                          \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);             \
        fprintf(stderr, __VA_ARGS__);                               \
        fprintf(stderr, " (%s)\n", error_ != NULL ? error_ : "");   \
        exit(1);                                                    \
    } while (0)

#define CHECK(what)                       \
    do {                                  \
        if (!(what)) {                    \
            FAIL("not so: %s", #what);    \
        }                                 \
    } while (0)

#define CHECK_EQUAL(got, wanted)                                            \
    do {                                                                    \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);   \
        if (got_ != wanted_) {                                              \
            FAIL("%s is %lld, not %lld", #got, got_, wanted_);              \
        }                                                                   \
    } while (0)

/* Bytes in which no part repeats another. */
static inline void fill(void *memory, size_t length, uint32_t seed)
{
    unsigned char *bytes = (unsigned char *)memory;
    uint64_t state = seed * 2654435761u + 88172645463325252u;
    size_t i;

    for (i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes[i] = (unsigned char)(state >> 32);
    }
}

/* Seconds, of the monotonic clock. */
static inline double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#endif
