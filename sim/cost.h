/* The cost model: a copy takes a latency, and its bytes at a bandwidth. */
#ifndef SIM_COST_H
#define SIM_COST_H

#include "state.h"

/* What an operation has of one kind: the bytes of all its elements, which are a batch's, the rows of a matrix, or what a
 * kernel copies. */
struct sim_work {
    size_t size, elements;
    enum { SIM_ELEMENTS, SIM_ROWS, SIM_KERNEL } made_of;
};

int64_t sim_copy_cost(enum sim_kind kind, bool pageable, struct sim_work work); /* nanoseconds */
int sim_parse_cost(const char *spec);

#endif
