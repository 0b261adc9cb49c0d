/* The ways in which a process that uses simulated devices ends. */
#ifndef ENDS_H
#define ENDS_H

#include "check.h"

/* What a program does with its runtime. */
struct uses {
    void (*begin)(void);
    void (*queue_copy)(void);
    void (*release)(void);
    void (*misuse)(void);
};

/* Uses a runtime, and returns with streams that have work ("busy"), with an operation that hangs ("hanging"), without
 * having released anything ("leaky"), after misuse ("wrong"), or after a release of everything ("clean"). */
static inline void use_and_leave(const struct uses *uses, const char *how)
{
    int i;

    uses->begin();
    if (strcmp(how, "hanging") == 0) {
        OK(kvferry_sim_faults("exec:1=hang"));
    }
    for (i = 0; i < 1000 && (strcmp(how, "hanging") == 0 || strcmp(how, "busy") == 0); i++) {
        uses->queue_copy();
    }
    if (strcmp(how, "clean") == 0 || strcmp(how, "wrong") == 0) {
        uses->release();
    }
    if (strcmp(how, "wrong") == 0) {
        uses->misuse();
    }
}

#endif
