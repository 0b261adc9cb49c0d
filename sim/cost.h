/* The cost model: a copy takes a latency, and its bytes at a bandwidth. */
#ifndef SIM_COST_H
#define SIM_COST_H

#include "state.h"

int64_t sim_copy_cost(enum sim_kind kind, bool pageable, size_t size, size_t elements); /* nanoseconds */
int sim_parse_cost(const char *spec);

#endif
