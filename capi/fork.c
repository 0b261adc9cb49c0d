/*
 * A process that was forked after the library was loaded has the memory of a Go runtime, but not its threads: a call of Go
 * would wait for ever. So every public function checks for that, and returns an error.
 */
#include "internal.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static int forked; /* written in the child's only thread, before fork() returns there */

/*
 * The reason of each thread, allocated when it is first needed. It is not a __thread array: because of Go's own thread variable
 * the loader puts all thread variables of the library into a small static block, and a second copy of the library would not fit
 * into it.
 */
static pthread_key_t reason_key;
static int have_reason_key;
static char shared_reason[REASON_SIZE]; /* used if there is no memory for the thread's own */

static void in_child(void)
{
    forked = 1;
    kvferry_forget_shutdown();
    kvferry_forget_log();
}

__attribute__((constructor)) static void notice_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
    have_reason_key = pthread_key_create(&reason_key, free) == 0;
}

int kvferry_refused_after_fork(void)
{
    if (forked) {
        kvferry_explain("this process was forked after the library was loaded, and cannot use it: "
                "load a private copy of the library file, or make the engine in a process that was spawned");
    }
    return forked;
}

char *kvferry_reason(void)
{
    char *reason = have_reason_key ? pthread_getspecific(reason_key) : shared_reason;

    if (reason == NULL) {
        reason = calloc(1, REASON_SIZE);
        if (reason == NULL || pthread_setspecific(reason_key, reason) != 0) {
            free(reason);
            return shared_reason;
        }
    }
    return reason;
}

void kvferry_explain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(kvferry_reason(), REASON_SIZE, format, arguments);
    va_end(arguments);
}
