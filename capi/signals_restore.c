/*
 * Ends what block_signals in signals.c begins. Only Go's main refers to this file, so that a linker takes it from the static
 * library after Go's start-up code: constructors run in that order.
 */
#include "internal.h"

#include <pthread.h>
#include <signal.h>

__attribute__((constructor)) void kvferry_restore_signal_mask(void)
{
    pthread_sigmask(SIG_SETMASK, &kvferry_callers_mask, NULL);
}
