/* Results: the reasons for a failure and their texts. Misuse is a failure that is counted. */
#ifndef SIM_ERROR_H
#define SIM_ERROR_H

#include "state.h"

enum sim_reason {
    SIM_OK = 0,
    SIM_INVALID = -1,
    SIM_UNINITIALIZED = -2,
    SIM_REPEATED = -3,
    SIM_NO_SUCH_DEVICE = -4,
    SIM_NO_DEVICE_SET = -5,
    SIM_OTHER_DEVICE = -6,
    SIM_UNALIGNED = -7,
    SIM_NO_SUCH_HANDLE = -8,
    SIM_UNSUPPORTED = -9,
    SIM_NO_MEMORY = -10,
    SIM_NO_STREAM = -11,
    SIM_STREAM_FULL = -12,
    SIM_STREAM_TIMEOUT = -13,
    SIM_EVENT_TIMEOUT = -14,
    SIM_LOST = -15,
    SIM_BROKEN = -16, /* the result of an injected fault that names no code */
    SIM_DMA_ERROR = -17,
    SIM_FORKED = -18,
    SIM_NOT_PERMITTED = -19, /* in a function that a stream calls */
    SIM_REGISTERED = -20,    /* page-locked already */
    SIM_UNREGISTERED = -21,  /* not page-locked */
    SIM_OTHER_MEMORY = -22,  /* of another device */
    SIM_UNTIMED = -23,       /* of events: there is no time between them */
    SIM_NOT_READY = -24,     /* of events: not complete */
    SIM_BAD_PROGRAM = -25,   /* a module that cannot be loaded */
    SIM_NOT_FOUND = -26,     /* in a module */
    SIM_NO_PEER = -27,       /* devices that cannot access each other's memory */
    SIM_PEER_ENABLED = -28,  /* already */
    SIM_REASONS = 29,
};

int sim_fail(int reason, const char *format, ...) __attribute__((format(printf, 2, 3)));
int sim_misuse(enum sim_misuse misuse, int reason, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Returns this thread's last error text, and forgets it; NULL where there is none. Valid until the thread's next. */
const char *sim_message(void);

#endif
