/* Memory of the devices, and page-locked memory of the host. */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include "device.h"

/* Host memory is page-locked; registered memory is the program's own, page-locked later; managed memory is a device's
 * that the host can access; a virtual range has pieces of device memory mapped into it. */
enum sim_memory {
    MEMORY_UNKNOWN,
    MEMORY_DEVICE,
    MEMORY_HOST,
    MEMORY_REGISTERED,
    MEMORY_MANAGED,
    MEMORY_VIRTUAL,
    MEMORY_FREED
};

/* A range of addresses that a copy can be from or to. */
struct allocation {
    uintptr_t base;       /* the address that was handed out */
    size_t size, span;    /* as asked for; in whole pages */
    unsigned char *bytes; /* elsewhere where the host cannot access the address that was handed out */
    enum sim_memory memory;
    int device;               /* -1 for a virtual range */
    struct granule *granules; /* of a virtual range: what is mapped where */
    int users;                /* queued or running copies */
    bool freed;
};

int sim_malloc(enum sim_memory memory, size_t size, void **out);
int sim_free(enum sim_memory memory, void *address);

int sim_register(void *address, size_t size);
int sim_unregister(void *address);
size_t sim_drop_memory(int device); /* frees all that was allocated on a device; returns how much there was */

/* Finds the memory that an address lies in. MEMORY_UNKNOWN is the program's own memory. */
enum sim_memory sim_locate(const void *address, struct allocation **out);
bool sim_index(struct allocation *allocation); /* has sim_locate find it; false where there is no memory for that */
void sim_unindex(struct allocation *allocation);
void sim_release(struct allocation *allocation); /* one user less; NULL is nobody's memory */

/* Adds what there is of some kinds of memory. */
void sim_count_memory(const enum sim_memory *kinds, size_t n, size_t *allocations, size_t *bytes);

#endif
