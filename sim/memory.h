/* Memory of the devices, and page-locked memory of the host. */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include "device.h"

enum sim_memory {
    MEMORY_UNKNOWN, /* the program's own */
    MEMORY_DEVICE,
    MEMORY_HOST,       /* allocated page-locked */
    MEMORY_REGISTERED, /* the program's own, page-locked by registering it */
    MEMORY_MANAGED,    /* a device's, and the host can access it */
    MEMORY_VIRTUAL,    /* a range into which device memory is mapped */
    MEMORY_FREED
};

/* A range of addresses that copies can use. */
struct allocation {
    uintptr_t base;       /* the address that the program has */
    size_t size, span;    /* in bytes: as asked for; in whole pages */
    unsigned char *bytes; /* at another address where the host cannot access base */
    enum sim_memory memory;
    int device;               /* -1 for a virtual range */
    struct granule *granules; /* of a virtual range: the memory that is mapped */
    int users;                /* queued or running copies */
    bool freed;
};

int sim_malloc(enum sim_memory memory, size_t size, void **out);
int sim_free(enum sim_memory memory, void *address);

int sim_register(void *address, size_t size);
int sim_unregister(void *address);
size_t sim_drop_memory(int device); /* frees all allocations of a device; returns how many there were */

/* Finds the allocation that an address lies in; NULL where there is none. */
enum sim_memory sim_locate(const void *address, struct allocation **out);

/* Adds an allocation to those that sim_locate finds; false where there is no memory for that. */
bool sim_index(struct allocation *allocation);
void sim_unindex(struct allocation *allocation);
void sim_end_use(struct allocation *allocation); /* one user less; NULL is the program's own memory */

/* Adds the number and bytes of all allocations of some kinds. */
void sim_count_memory(const enum sim_memory *kinds, size_t n, size_t *allocations, size_t *bytes);

#endif
