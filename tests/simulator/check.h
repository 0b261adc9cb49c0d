/* What the programs that test the simulator share: checks, its report, and threads. */
#ifndef CHECK_H
#define CHECK_H

#include <pthread.h>

#include "kvferry_sim.h"

#define LAST_ERROR() kvferry_sim_message()
#include "../support/testing.h"

/* A call must fail with that code and set the error text, which the simulator returns once. */
#define CHECK_FAILS(call, code)                                                                    \
    do {                                                                                           \
        kvferry_sim_message();                                                                     \
        CHECK_EQUAL(call, code);                                                                   \
        CHECK(kvferry_sim_message() != NULL);                                                      \
        CHECK(kvferry_sim_message() == NULL);                                                      \
    } while (0)

#define OK(call) CHECK_EQUAL(call, 0)

/* The number of a name in the simulator's report: the first of that name. */
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

/* Fails where the report has another number than 0 for a name of the list, which ends with NULL. */
static inline void none_reported(const char *const *names)
{
    for (; *names != NULL; names++) {
        if (reported(*names) != 0) {
            FAIL("%s is %lld, not 0", *names, reported(*names));
        }
    }
}

/* Runs a function on a thread of its own, to its end. */
static inline void on_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, body, argument) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* Runs a function on that many threads at once, each with its number, to their ends. */
static inline void on_threads(size_t count, void *(*body)(void *))
{
    pthread_t threads[16];
    size_t i;

    CHECK(count <= sizeof threads / sizeof *threads);
    for (i = 0; i < count; i++) {
        CHECK(pthread_create(&threads[i], NULL, body, (void *)(uintptr_t)i) == 0);
    }
    for (i = 0; i < count; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

#endif
