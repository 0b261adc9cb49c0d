/* All streams: making, finding and ending them, and their order with the default stream. */
#ifndef SIM_STREAMS_H
#define SIM_STREAMS_H

#include "stream.h"

/* A blocking stream is ordered with the default stream. */
int sim_create_stream(bool blocking, void **out);
int sim_destroy_stream(void *stream);

int sim_query_stream(void *stream, bool *complete);
int sim_stream_device(void *stream, int *device); /* of whichever device it is */

/* Waits for all streams of this thread's device, or for the default one and those that block. */
enum sim_streams { STREAMS_ALL, STREAMS_BLOCKING };
int sim_synchronize_device(enum sim_streams which);

size_t sim_count_streams(void);      /* without default streams */
size_t sim_count_busy_streams(void); /* with operations that are not complete */
size_t sim_drop_streams(int device); /* destroys all of a device; returns how many there were */

/* The timeout is in milliseconds; -1 is none. */
int sim_synchronize_stream(void *stream, int64_t timeout);

/* The stream with a handle, or the default one, which must be of this thread's device. NULL and a reason otherwise. */
struct stream *stream_find(const void *handle, int *result);

/* Queues the waits that order what comes next: the default stream waits for those that block, and they wait for it. */
int stream_keep_order(struct stream *stream);

#endif
