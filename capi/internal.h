/*
 * What the C and the Go half of the library share. A call of the interface goes this way:
 *
 *  1. a public function of exports.c or exports_ext.c, which refuses it in a forked child (fork.c);
 *  2. a Go function, kvferry_go_*, which looks its handles up, calls the engine, and turns an error or a panic into a
 *     result and a reason (call.go). For most functions that is all: submitTransfer, kvferry_go_submit, Engine.Submit.
 *  3. A function that blocks then waits in C, on a futex on the caller's own stack, and calls Go once more to end the wait
 *     (wait.c, wait.go). Outside Go the program's signal handlers run on this thread, and the wait takes no CPU.
 *
 * Names that C files share start with kvferry_ too: a program that is linked with the static library sees them.
 */
#ifndef KVFERRY_INTERNAL_H
#define KVFERRY_INTERNAL_H

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "transfer_engine_c.h"
#include "transfer_engine_ext.h"

/* Size of a reason: the text of the last error, NUL included. */
#define REASON_SIZE 1024

/* Result of a call that was refused in a forked child, where it is a Status code. */
#define FORKED_STATUS 202

/* The result of a Go function for a batch that has not ended. No public function returns it. */
#define BATCH_RUNNING 1

/* Read-only parameters, by names that cgo keeps in the prototypes it writes. */
typedef const char *text_t;
typedef const uint64_t *numbers_t;
typedef const notify_msg_t *message_t;
typedef const buffer_entry_t *ranges_t;
typedef const kvferry_metadata_server_options_t *server_options_t;
typedef const kvferry_place_t *places_t;
typedef const kvferry_transfer_t *transfer_t;

/* The calling thread's reason buffer, REASON_SIZE bytes. */
char *kvferry_reason(void);

/* Fills the calling thread's reason. */
void kvferry_explain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether this process was forked after the library was loaded. If so, it sets the reason. */
int kvferry_refused_after_fork(void);

/* The beginning of every public function: returns value in a forked child. */
#define ENTER(value)                        \
    do {                                    \
        if (kvferry_refused_after_fork()) { \
            return value;                   \
        }                                   \
        kvferry_tend_handlers();            \
    } while (0)

/* pthread_create. It fails if the system allows no more threads; the function of that name that Go calls waits instead. */
int kvferry_start_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);

/* Whether the system allows so many more threads now: 0, or an errno. Takes some 20 us for each. */
int kvferry_probe_threads(int count);

/* Called from Go when the library is loaded. */
void kvferry_runtime_started(void);

/* Starts the threads that the library needs, once. Called before an engine is made. 0, or an errno and the reason is set. */
int kvferry_reserve_threads(void);

/* Called in a forked child before anything else: no locks, no allocation. */
void kvferry_forget_shutdown(void);

/* Makes exit() wait, for a limited time, until this counter is 0. Called from Go. */
void kvferry_watch_log(const uint32_t *unwritten);

/* Called in a forked child, likewise. */
void kvferry_forget_log(void);

/* The mask of the thread that loads the library, while constructors run. */
extern sigset_t kvferry_callers_mask;

/* A constructor: restores the signal mask after the start of the Go runtime. */
void kvferry_restore_signal_mask(void);

/* Adds SA_ONSTACK to the handlers that the program has installed, unless that was done a moment ago. */
void kvferry_tend_handlers(void);

/*
 * Replaces a signal's action, unless the program has changed it since the caller has seen it. 0; EAGAIN if the program has changed
 * it: its action stays; or another errno.
 */
int kvferry_replace_action(int number, const struct sigaction *seen, const struct sigaction *wanted);

/* Makes SIGTERM and SIGINT withdraw the metadata of every engine with a graceful shutdown; 0 or an errno. */
int kvferry_watch_for_shutdown(void);

/*
 * Waits until *word is 1. timeout_ms < 0 is without a limit. 0, or ETIMEDOUT, or EINTR when a signal handler ran on this
 * thread.
 */
int kvferry_wait_for_word(uint32_t *word, int64_t timeout_ms);

/*
 * A copy of the environment in memory from malloc, and its length: each variable, NUL included, after the other. NULL where
 * there is no memory.
 */
char *kvferry_copy_environment(size_t *length);

/* The monotonic clock, in milliseconds. */
int64_t kvferry_now_ms(void);

/* Sets *word to 1 and wakes its waiter. Called from Go. */
void kvferry_signal_word(uint32_t *word);

#endif
