/* Virtual ranges: addresses into which physical allocations of device memory are mapped. */
#ifndef SIM_VIRTUAL_H
#define SIM_VIRTUAL_H

#include "memory.h"

enum { SIM_GRANULE = 2 << 20 }; /* bytes: ranges and physical allocations are of whole granules */
int sim_reserve(size_t size, size_t alignment, void **out);
int sim_unreserve(void *address, size_t size);
int sim_create_physical(size_t size, int device, void **out);
int sim_release_physical(void *handle);
int sim_map(void *address, size_t size, void *handle);
int sim_unmap(void *address, size_t size);
int sim_set_access(void *address, size_t size, int device); /* lets the device access what is mapped there */

/* The device whose memory is mapped at all of a part of a range, and which has access to it; -1 where there is none. */
int sim_mapped(const struct allocation *range, size_t offset, size_t size);

/* Counts copies that use a part of a range: one more or one less. */
void sim_use_virtual(struct allocation *range, size_t offset, size_t size, int change);

void sim_count_virtual(size_t *allocations, size_t *bytes, size_t *ranges);

#endif
