/*
 * The other half of block_signals in signals.c. It is in a file of its own, which nothing but Go's main refers to, so
 * that a linker takes it from the static library after Go's start-up code: constructors run in that order.
 */
#include "internal.h"

#include <pthread.h>
#include <signal.h>

__attribute__((constructor)) void kvferry_restore_signal_mask(void)
{
    pthread_sigmask(SIG_SETMASK, &kvferry_callers_mask, NULL);
}
