/*
 * Graceful shutdown. A signal is handled in these steps:
 *
 *  1. The handler, on any thread of the program, notes the signal and posts a semaphore.
 *  2. A thread that blocks all signals withdraws the metadata of the engines (shutdown.go).
 *  3. It restores the handler that was installed before, and sends the same signal to the process again.
 */
#include "_cgo_export.h"
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <unistd.h>

/* A signal that is watched. */
struct watched {
    int number;
    struct sigaction before;       /* the action that the handler has replaced */
    volatile sig_atomic_t arrived; /* and was not sent to the process again yet */
};

static struct watched watched[] = {{.number = SIGTERM}, {.number = SIGINT}};
#define WATCHED (sizeof watched / sizeof *watched)

static sem_t arrivals;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for thread_runs, and for changes of the handlers */
static int thread_runs;

static void on_signal(int number)
{
    int saved = errno;
    size_t i;

    for (i = 0; i < WATCHED; i++) {
        if (watched[i].number == number) {
            watched[i].arrived = 1;
        }
    }
    sem_post(&arrivals);
    errno = saved;
}

/* Restores the action that the handler has replaced. 0 if the program has replaced the handler meanwhile. */
static int restore(struct watched *w)
{
    struct sigaction current;

    if (sigaction(w->number, NULL, &current) != 0 || current.sa_handler != on_signal) {
        return 0;
    }
    return kvferry_replace_action(w->number, &current, &w->before) == 0;
}

/* Lets a signal do what it would have done without the handler. If the program has replaced the handler, and called it from its
 * own, that has happened already. */
static void pass_on(struct watched *w)
{
    int restored;

    pthread_mutex_lock(&lock);
    w->arrived = 0;
    restored = restore(w);
    pthread_mutex_unlock(&lock);
    if (restored) {
        kill(getpid(), w->number);
    }
}

static void *withdraw_and_pass_on(void *unused)
{
    size_t i;

    for (;;) {
        while (sem_wait(&arrivals) != 0) {
        }
        kvferry_go_withdraw(kvferry_reason());
        for (i = 0; i < WATCHED; i++) {
            if (watched[i].arrived) {
                pass_on(&watched[i]);
            }
        }
    }
    return unused;
}

/* Starts the thread with every signal blocked. 0 or an errno. */
static int start_thread(void)
{
    sigset_t all, before;
    pthread_t thread;
    int failure;

    if (sem_init(&arrivals, 0, 0) != 0) {
        return errno;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failure = kvferry_start_thread(&thread, NULL, withdraw_and_pass_on, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure == 0) {
        pthread_detach(thread);
        thread_runs = 1;
    }
    return failure;
}

/* Puts the handler in place, unless it is there or the signal is ignored. 0 or an errno. */
static int watch(struct watched *w)
{
    struct sigaction ours = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
    struct sigaction current;
    int failure;

    sigemptyset(&ours.sa_mask);
    do {
        if (sigaction(w->number, NULL, &current) != 0) {
            return errno;
        }
        if (current.sa_handler == on_signal || current.sa_handler == SIG_IGN) {
            return 0;
        }
        w->before = current;
        failure = kvferry_replace_action(w->number, &current, &ours);
    } while (failure == EAGAIN);
    return failure;
}

int kvferry_watch_for_shutdown(void)
{
    int failure = 0;
    size_t i;

    pthread_mutex_lock(&lock);
    if (!thread_runs) {
        failure = start_thread();
    }
    for (i = 0; i < WATCHED && failure == 0; i++) {
        failure = watch(&watched[i]);
    }
    pthread_mutex_unlock(&lock);
    return failure;
}

void kvferry_forget_shutdown(void)
{
    size_t i;

    for (i = 0; i < WATCHED; i++) {
        restore(&watched[i]);
    }
}
