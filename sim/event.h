/* Events: places in streams. */
#ifndef SIM_EVENT_H
#define SIM_EVENT_H

#include "error.h"

int sim_create_event(bool timed, void **out);
int sim_destroy_event(void *event);
int sim_record_event(void *event, void *stream);
int sim_stream_wait_event(void *stream, void *event);
int sim_query_event(void *event, bool *complete);

/* What the operations of a stream between two timed events take by the cost model, in milliseconds: not how long they
 * took, since it makes no difference when they were submitted. SIM_UNTIMED where an event is not timed or was not
 * recorded, or they are of two streams; SIM_NOT_READY where one is not complete. */
int sim_elapsed(float *milliseconds, void *from, void *to);

/* The timeout is in milliseconds; -1 is none. */
int sim_synchronize_event(void *event, int64_t timeout);

size_t sim_count_events(void);
size_t sim_drop_events(int device); /* destroys all of a device; returns how many there were */

#endif
