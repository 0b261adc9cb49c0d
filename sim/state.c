/* The state, its lock, and what fork() does to them. */
#include "state.h"

struct sim sim = {.devices = 2};
bool sim_forked;

static void forked_child(void)
{
    sim_forked = true;
}

/* The lock is held for less time than a thread takes to fall asleep, so a thread that finds it locked spins first. */
__attribute__((constructor)) static void prepare(void)
{
    pthread_mutexattr_t attributes;

    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&sim.lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_atfork(NULL, NULL, forked_child);
}
