/* Checks that take a child process. */
#ifndef PROCESSES_H
#define PROCESSES_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* The host can neither read device memory nor have a system call write to it. */
static inline void check_host_cannot_access(void *device)
{
    int zero = open("/dev/zero", O_RDONLY), status;
    pid_t child;

    CHECK(zero >= 0);
    CHECK(read(zero, device, 1) == -1 && errno == EFAULT);
    close(zero);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's would write a report */
        _exit(*(volatile unsigned char *)device);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* Forks many times while a thread uses the simulator, so that some forks happen while it holds the lock. Each child
 * must pass check_child. `use` gets the address of an int that is set when it is to end. */
static inline void check_forks(void *(*use)(void *stop), void (*check_child)(void))
{
    pthread_t thread;
    int stop = 0, i, status;

    CHECK(pthread_create(&thread, NULL, use, &stop) == 0);
    for (i = 0; i < 50; i++) {
        pid_t child = fork();

        CHECK(child >= 0);
        if (child == 0) {
            check_child();
            exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    CHECK(pthread_join(thread, NULL) == 0);
}

#endif
