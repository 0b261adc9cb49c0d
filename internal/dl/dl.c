#define _GNU_SOURCE
#include "dl.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

/* Recursive: the code of a library that is being opened may fork. */
static pthread_mutex_t opening = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static void before_fork(void)
{
    pthread_mutex_lock(&opening);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&opening);
}

/* Replaced, as the child cannot unlock it: a mutex names its owner by thread id, and the child's thread has another. */
static void in_child(void)
{
    static const pthread_mutex_t fresh = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

    opening = fresh;
}

__attribute__((constructor)) static void register_fork_handlers(void)
{
    pthread_atfork(before_fork, after_fork, in_child);
}

void *kvferry_dl_open(const char *path, int flags)
{
    void *library;

    pthread_mutex_lock(&opening);
    library = dlopen(path, flags);
    pthread_mutex_unlock(&opening);
    return library;
}

void kvferry_dl_close(void *library)
{
    pthread_mutex_lock(&opening);
    dlclose(library);
    pthread_mutex_unlock(&opening);
}

static int count_loads(struct dl_phdr_info *info, size_t size, void *loads)
{
    (void)size;
    *(unsigned long long *)loads = info->dlpi_adds;
    return 1;
}

unsigned long long kvferry_dl_loads(void)
{
    unsigned long long loads = 0;

    pthread_mutex_lock(&opening);
    dl_iterate_phdr(count_loads, &loads);
    pthread_mutex_unlock(&opening);
    return loads;
}
