/* The worker of a stream: a thread that executes its operations, in order. */
#ifndef SIM_WORKER_H
#define SIM_WORKER_H

#include "stream.h"

/* Starts the worker, which owns one reference; false where there is no thread. */
bool worker_start(struct stream *stream);

#endif
