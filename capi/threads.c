/*
 * Threads, at the limit of what the system allows: a container's pids limit, RLIMIT_NPROC, RLIMIT_AS,
 * or RLIMIT_DATA.
 *
 *  1. kvferry_reserve_threads finds out how many threads the system still allows, by starting them outside Go, and by taking as
 *     much address space as they may need for a moment. Go then starts as many, and keeps them: see core/threads.
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
#include <sys/mman.h>
#include <sys/resource.h>
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
    static const char line[] = "WARN\tkvferry\tthe system starts no more threads: the pids limit of the container, "
                               "RLIMIT_NPROC or RLIMIT_AS is reached; waiting for one\n";
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

/* Address space: what malloc of glibc takes for a thread that it has no other place for, and how many such places it makes for
 * each processor. GO_ROOM is what Go may take while engines work: it ends the process if it gets none. */
#define MALLOC_ROOM ((size_t)64 << 20)
#define MALLOC_PLACES 8
#define GO_ROOM ((size_t)256 << 20)
#define GO_DATA ((size_t)64 << 20) /* as GO_ROOM, of memory that can be written */

/* ENOMEM where a limit does not let the process map so much memory with that protection; 0 where it does, or there is none. */
static int probe_room(int resource, size_t room, int protection)
{
    struct rlimit limit;
    void *reserved;

    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return 0;
    }
    reserved = mmap(NULL, room, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) {
        return ENOMEM;
    }
    munmap(reserved, room);
    return 0;
}

/* ENOMEM where the process may not have the memory of so many more threads; 0 where it may, or has no limit. */
static int probe_memory(int threads)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    size_t places = MALLOC_PLACES * (size_t)(processors > 0 ? processors : 1), stack = 0;
    pthread_attr_t attributes;
    int failure;

    if (pthread_attr_init(&attributes) == 0) {
        pthread_attr_getstacksize(&attributes, &stack);
        pthread_attr_destroy(&attributes);
    }
    if (places > (size_t)threads) {
        places = (size_t)threads;
    }
    failure = probe_room(RLIMIT_AS, (size_t)threads * stack + places * MALLOC_ROOM + GO_ROOM, PROT_NONE);
    return failure != 0 ? failure : probe_room(RLIMIT_DATA, (size_t)threads * stack + GO_DATA, PROT_READ | PROT_WRITE);
}

int kvferry_probe_threads(int count)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    sigset_t all, before;
    int failure = probe_memory(count), started = 0;

    if (threads == NULL || failure != 0) {
        free(threads);
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
        kvferry_explain("the %d threads that the library needs cannot be started: %s: raise %s", count, strerror(failure),
                        failure == ENOMEM ? "RLIMIT_AS (ulimit -v) or RLIMIT_DATA (ulimit -d)"
                                          : "the pids limit of the container, or RLIMIT_NPROC");
    }
    return failure;
}
