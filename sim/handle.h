/* Handles of objects: numbers that look like no address, so that a stale or invented one is recognised. */
#ifndef SIM_HANDLE_H
#define SIM_HANDLE_H

#include <stddef.h>

enum sim_object { OBJECT_NONE, OBJECT_STREAM, OBJECT_EVENT, OBJECT_PHYSICAL, OBJECT_MODULE, OBJECT_FUNCTION };
void *sim_handle(enum sim_object type, void *object); /* NULL where there are too many */
void *sim_object(enum sim_object type, const void *handle); /* NULL where the handle is stale or of another type */
void *sim_next_object(enum sim_object type, size_t *position); /* iterates from position 0; NULL at the end */
void sim_drop_handle(const void *handle);

#endif
