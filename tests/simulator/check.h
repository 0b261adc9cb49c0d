/* What the programs that test the simulator share: checks. A program tests one thing after the other and ends with 0,
 * or says what was wrong and ends with 1. */
#ifndef CHECK_H
#define CHECK_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvferry_sim.h"

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            const char *why_ = kvferry_sim_message();                                              \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, why_ ? why_ : ""); \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(got, wanted)                                                                   \
    do {                                                                                           \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);                          \
        if (got_ != wanted_) {                                                                     \
            const char *why_ = kvferry_sim_message();                                              \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld (%s)\n", __FILE__, __LINE__, #got, got_, wanted_, \
                    why_ ? why_ : "");                                                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* A call that must fail with that code, and leave a text about it, once. */
#define CHECK_FAILS(call, code)                                                                    \
    do {                                                                                           \
        kvferry_sim_message();                                                                     \
        CHECK_EQUAL(call, code);                                                                   \
        CHECK(kvferry_sim_message() != NULL);                                                      \
        CHECK(kvferry_sim_message() == NULL);                                                      \
    } while (0)

#define OK(call) CHECK_EQUAL(call, 0)

/* Bytes in which no part repeats another. */
static inline void fill(void *memory, size_t length, uint32_t seed)
{
    unsigned char *bytes = memory;
    uint64_t state = seed * 2654435761u + 88172645463325252u;
    size_t i;

    for (i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes[i] = (unsigned char)(state >> 32);
    }
}

/* The number behind a name in the simulator's report; it is the first of that name. */
static inline long long reported(const char *name)
{
    size_t size = kvferry_sim_report(NULL, 0) + 1;
    char *text = malloc(size), key[64], *at;
    long long number;

    CHECK(text != NULL && kvferry_sim_report(text, size) < size);
    snprintf(key, sizeof key, "\"%s\": ", name);
    at = strstr(text, key);
    CHECK(at != NULL);
    number = strtoll(at + strlen(key), NULL, 10);
    free(text);
    return number;
}

/* Runs a function on a thread of its own, to its end. */
static inline void on_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, body, argument) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

static inline double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#endif
