/*
 * Threads, at the limit of what the system allows: a container's pids limit, or RLIMIT_NPROC.
 *
 *  1. kvferry_reserve_threads finds out how many threads the system still allows, by starting them outside Go. Go then starts
 *     as many, and keeps them: see core/threads.
 *  2. Go may need one more nevertheless. It ends the process if it does not get one. So its calls of pthread_create use the
 *     function below, which waits until the system allows one.
 */
#include "_cgo_export.h"
#include "internal.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef void *thread_t(void *);

#ifdef KVFERRY_SHARED

typedef int create_t(pthread_t *, const pthread_attr_t *, thread_t *, void *);

static int started; /* the Go runtime has started: before that, while the library is loaded, a wait would never end */

void kvferry_runtime_started(void)
{
    __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
}

int kvferry_start_thread(pthread_t *thread, const pthread_attr_t *attributes, thread_t *run, void *argument)
{
    static create_t *create;
    create_t *found = __atomic_load_n(&create, __ATOMIC_ACQUIRE);

    if (found == NULL) {
        *(void **)&found = dlsym(RTLD_DEFAULT, "pthread_create"); /* the C library's or the program's: the one below is not exported */
        if (found == NULL) {
            return ENOSYS;
        }
        __atomic_store_n(&create, found, __ATOMIC_RELEASE);
    }
    return found(thread, attributes, run, argument);
}

/* Writes once to standard error that Go waits for a thread, unless standard error takes nothing. */
static void say_waiting(void)
{
    static const char line[] = "WARN\tkvferry\tthe system starts no more threads: the pids limit of the container, or "
                               "RLIMIT_NPROC, is reached; waiting for one\n";
    static int said;
    struct pollfd output = {.fd = STDERR_FILENO, .events = POLLOUT};

    if (__atomic_exchange_n(&said, 1, __ATOMIC_RELAXED) || poll(&output, 1, 0) != 1) {
        return;
    }
    if (write(STDERR_FILENO, line, sizeof line - 1) < 0) {
        return; /* there is no other place to report it */
    }
}

/* What Go calls. Only this library sees it: its symbols are not exported. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, thread_t *run, void *argument)
{
    const struct timespec moment = {.tv_nsec = 10000000};
    int failure = kvferry_start_thread(thread, attributes, run, argument);

    while (failure == EAGAIN && __atomic_load_n(&started, __ATOMIC_ACQUIRE)) {
        say_waiting();
        nanosleep(&moment, NULL);
        failure = kvferry_start_thread(thread, attributes, run, argument);
    }
    return failure;
}

#else /* a program with the static library has its own pthread_create */

void kvferry_runtime_started(void)
{
}

int kvferry_start_thread(pthread_t *thread, const pthread_attr_t *attributes, thread_t *run, void *argument)
{
    return pthread_create(thread, attributes, run, argument);
}

#endif

/* A thread that lives until the gate opens. */
static void *wait_at(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

int kvferry_probe_threads(int count)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    sigset_t all, before;
    int failure = 0, started = 0;

    if (threads == NULL) {
        return ENOMEM;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&gate);
    while (started < count && failure == 0) {
        failure = kvferry_start_thread(&threads[started], NULL, wait_at, &gate);
        if (failure == 0) {
            started++;
        }
    }
    pthread_mutex_unlock(&gate);
    while (started > 0) {
        pthread_join(threads[--started], NULL);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_destroy(&gate);
    free(threads);
    return failure;
}

int kvferry_reserve_threads(void)
{
    static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
    int failure = 0, count = 0, way, wanted;

    pthread_mutex_lock(&turn);
    for (way = 0; (wanted = kvferry_go_threads_wanted(way)) > 0; way++) {
        count = wanted;
        failure = kvferry_probe_threads(count);
        if (failure == 0) {
            kvferry_go_reserve_threads(way);
            break;
        }
    }
    pthread_mutex_unlock(&turn);
    if (failure != 0) {
        kvferry_explain("the %d threads that the library needs cannot be started: %s: raise the pids limit of the container, "
                        "or RLIMIT_NPROC", count, strerror(failure));
    }
    return failure;
}
